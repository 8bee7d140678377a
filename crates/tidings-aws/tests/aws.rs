//! The transport on an emulator of SNS and SQS.

mod behaviour;

use behaviour::connect;
use tidings_testing::servers::aws_url;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs SQS: run `cargo xtask test`"]
async fn it_keeps_the_contract_of_a_transport() {
    let url = aws_url();
    tidings_testing::transport::conformance(async || connect(&url).await).await;
}
