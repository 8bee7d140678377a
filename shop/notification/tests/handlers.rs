//! What notification writes when something happens, in a world in the process.

use std::{path::PathBuf, time::Duration};

use shop_contracts::{EmailSent, Money, OrderCancelled, OrderConfirmed};
use shop_kit::Database;
use shop_notification::Mailer;
use tidings_testing::TestWorld;

struct Mails {
    folder: PathBuf,
    _all: tempfile::TempDir,
}

impl Mails {
    fn read(&self) -> Vec<String> {
        let files = std::fs::read_dir(&self.folder).unwrap();
        let read = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        read.collect()
    }
}

async fn run(world: &TestWorld) -> Mails {
    let all = tempfile::tempdir().unwrap();
    let folder = all.path().join("mails");
    let mailer = Mailer::folder(&folder).unwrap();
    let database = Database::Sqlite(all.path().into());
    let service = shop_notification::service(&database, mailer).await.unwrap();
    world.run(service.messages.unwrap()).await;
    Mails { folder, _all: all }
}

fn confirmed(email: Option<&str>) -> OrderConfirmed {
    OrderConfirmed {
        order_id: "o-1".into(),
        amount: Money::from_cents(9999),
        customer_id: None,
        email: email.map(Into::into),
    }
}

#[tidings::test]
async fn a_confirmation_that_comes_twice_is_one_mail(world: TestWorld) {
    let mails = run(&world).await;
    world.deliver_twice();
    world.publish(&confirmed(Some("a@example.com")));
    world.quiet().await;
    let read = mails.read();
    assert!(
        read.len() == 1 && read[0].contains("Your order o-1 over 99.99 is paid"),
        "{read:?}"
    );
    assert_eq!(world.published::<EmailSent>().len(), 1);
}

#[tidings::test]
async fn a_cancellation_says_why(world: TestWorld) {
    let mails = run(&world).await;
    world.publish(&OrderCancelled {
        order_id: "o-1".into(),
        reason: "the card was declined".into(),
        email: Some("a@example.com".into()),
    });
    world.quiet().await;
    assert!(mails.read()[0].contains("the card was declined"));
}

#[tidings::test]
async fn nobody_writes_to_a_customer_without_an_address(world: TestWorld) {
    let mails = run(&world).await;
    world.publish(&confirmed(None));
    world.quiet().await;
    assert_eq!((mails.read().len(), world.sent().len()), (0, 0));
}

#[tidings::test]
async fn an_address_that_is_none_is_a_dead_letter(world: TestWorld) {
    let mails = run(&world).await;
    world.publish(&confirmed(Some("nobody")));
    world.quiet().await;
    let dead = world.dead_letters("notification.order-confirmed.v1");
    assert!(dead[0].reason().contains("not an address"), "{dead:?}");
    assert_eq!(mails.read().len(), 0);
}

#[tidings::test]
async fn a_mail_waits_until_it_can_be_sent(world: TestWorld) {
    let mails = run(&world).await;
    std::fs::remove_dir(&mails.folder).unwrap();
    world.publish(&confirmed(Some("a@example.com")));
    world.quiet().await;
    world.advance(Duration::from_secs(3600)).await;
    std::fs::create_dir(&mails.folder).unwrap();
    world.advance(Duration::from_secs(60)).await;
    assert_eq!(mails.read().len(), 1);
}
