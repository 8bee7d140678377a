//! Orders of strangers that are as large as an order may be.

mod world;

use shop_kit::Database;

use world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_of_two_thousand_unknown_products_is_refused_in_a_few_words() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(Database::Sqlite(folder.path().into())).await;
    let skus: Vec<String> = (0..2_000).map(|n| format!("{n:0128}")).collect();
    let items: Vec<_> = skus.iter().map(|sku| (&**sku, 1)).collect();
    world.place("o-1", &items).await;
    world.until_status("o-1", "REJECTED").await;
    world.until_quiet().await;
    let said = world.service.said();
    let [(name, body)] = &said[..] else {
        panic!("{said:?}");
    };
    assert_eq!(name, "stock-rejected");
    let reason = body["reason"].as_str().unwrap();
    assert!(
        reason.ends_with("and 1997 more products are not to be had"),
        "{reason}"
    );
    assert!(reason.len() < 1_000, "{reason}");
    world.service.stop().await;
}
