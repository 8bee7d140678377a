//! The operator endpoint of this process, if it is asked for: `tidings --at` looks at its services, and operates
//! them, through it.

use std::sync::Arc;

use anyhow::anyhow;
use shop_kit::Service;
use tidings::Transport;
use tidings_operator::{Endpoint, Operator, Token};

use crate::cli::Options;

/// The variable with the token.
const TOKEN_VARIABLE: &str = "TIDINGS_OPERATOR_TOKEN";

/// Takes the address. Connections wait until the endpoint serves.
pub(crate) async fn bind(
    options: &Options,
    broker: &Arc<dyn Transport>,
) -> anyhow::Result<Option<Endpoint>> {
    let Some(address) = options.operator_listen else {
        return Ok(None);
    };
    let operator = Operator::new(Arc::clone(broker));
    let operator = match (&options.operator_token_file, std::env::var(TOKEN_VARIABLE)) {
        (Some(file), _) => operator.token(Token::from_file(file)?),
        (None, Ok(token)) => operator.token(Token::new(&token)?),
        (None, Err(_)) => operator,
    };
    let endpoint = operator.listen(address).await.map_err(|error| {
        anyhow!(
            "{error}; the address is that of `--operator-listen` (port 0 picks a free one), the token that of \
             `--operator-token-file` or {TOKEN_VARIABLE}"
        )
    })?;
    Ok(Some(endpoint))
}

/// The endpoint with the databases of these services.
pub(crate) fn with_services(endpoint: Endpoint, services: &[Service]) -> Endpoint {
    let stores = services.iter().filter_map(|service| {
        let db = service.db.as_ref()?;
        Some((service.name, db.store()))
    });
    stores.fold(endpoint, |endpoint, (name, store)| {
        endpoint.service(name, store)
    })
}
