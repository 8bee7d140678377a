//! Storefront: the page people see, and the way from it to services in other processes.
//!
//! The page is a program of its own that only knows the HTTP API. It has no state here, needs
//! nothing from elsewhere, and its content security policy lets nothing else in.

mod proxy;

use axum::{
    Router,
    http::{HeaderName, header},
    response::IntoResponse,
    routing::get,
};
use shop_kit::Service;

pub use proxy::Elsewhere;

/// Only what comes from this address, and no inline script or style at all.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// Makes the service. `elsewhere` are the services that the page needs and that do not run in
/// this process.
pub fn service(elsewhere: Vec<Elsewhere>) -> Service {
    let page = Router::new()
        .route(
            "/",
            get(|| file("text/html", include_str!("../page/index.html"))),
        )
        .route(
            "/style.css",
            get(|| file("text/css", include_str!("../page/style.css"))),
        )
        .route(
            "/shop.js",
            get(|| file("text/javascript", include_str!("../page/shop.js"))),
        )
        .route(
            "/live.js",
            get(|| file("text/javascript", include_str!("../page/live.js"))),
        )
        .route(
            "/favicon.svg",
            get(|| file("image/svg+xml", include_str!("../page/favicon.svg"))),
        );
    Service {
        name: "storefront",
        http: page.merge(proxy::routes(elsewhere)),
        messages: None,
        db: None,
    }
}

async fn file(kind: &'static str, content: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, format!("{kind}; charset=utf-8")),
        (header::CACHE_CONTROL, "no-cache".to_owned()),
        (
            header::CONTENT_SECURITY_POLICY,
            CONTENT_SECURITY_POLICY.to_owned(),
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin".to_owned(),
        ),
    ];
    (headers, content)
}
