//! What a host tells the router, and who is asking.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use vidgen_core::{Limits, TenantId, Vidgen};

use crate::error::Problem;
use crate::links::SignedLinks;

/// Who is asking. The host's own authentication puts it into the request's extensions:
///
/// ```
/// use axum::extract::Request;
/// use vidgen_core::TenantId;
/// use vidgen_http::Principal;
///
/// fn signed_in(mut request: Request, user: &str) -> vidgen_core::Result<Request> {
///     request.extensions_mut().insert(Principal::new(TenantId::new(user)?));
///     Ok(request)
/// }
/// # signed_in(Request::default(), "ada")?;
/// # Ok::<_, vidgen_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Principal {
    /// Whose jobs these are.
    pub tenant: TenantId,
    /// What they may use; the limits of [`VidgenBuilder`](vidgen_core::VidgenBuilder) if absent.
    pub limits: Option<Limits>,
}

impl Principal {
    /// Acts for `tenant`.
    #[must_use]
    pub fn new(tenant: TenantId) -> Self {
        Self { tenant, limits: None }
    }

    /// Under limits of its own.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }
}

/// How the router behaves.
#[derive(Clone, Debug)]
pub struct RouterOptions {
    anonymous: Option<Principal>,
    pub(crate) links: Option<SignedLinks>,
}

impl RouterOptions {
    /// Every caller is the same tenant: for a product of one user, and for trying things out.
    /// A [`Principal`] in the request still wins.
    #[must_use]
    pub fn single_tenant() -> Self {
        Self::anonymous(Principal::new(TenantId::single()))
    }

    /// Whoever has no [`Principal`] acts as `principal`.
    #[must_use]
    pub fn anonymous(principal: Principal) -> Self {
        Self { anonymous: Some(principal), links: None }
    }

    /// Whoever has no [`Principal`] is refused with 401.
    #[must_use]
    pub fn authenticated() -> Self {
        Self { anonymous: None, links: None }
    }

    /// Serves media under the signed paths that `links` makes. Give the same links to
    /// [`VidgenBuilder::media_links`](vidgen_core::VidgenBuilder::media_links).
    #[must_use]
    pub fn with_links(mut self, links: SignedLinks) -> Self {
        self.links = Some(links);
        self
    }
}

/// What the routes share.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) vidgen: Vidgen,
    pub(crate) options: Arc<RouterOptions>,
}

impl FromRequestParts<Api> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        parts.extensions.get().or(api.options.anonymous.as_ref()).cloned().ok_or_else(Problem::unauthorized)
    }
}
