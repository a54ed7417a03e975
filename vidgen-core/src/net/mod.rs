//! The guarded outbound client: the only code that connects to an address somebody else chose.
//!
//! A user names a webhook endpoint or an image, and the server fetches it from inside of its own
//! network: that is how cloud credentials are stolen. So the text is judged first
//! ([`Guard::check`], no I/O), then every address its name resolves to, then the peer that
//! answered. Literal addresses are judged by themselves, because clients never ask a resolver for
//! them. A redirect is judged the same way, as one more text of a stranger's.

mod address;
mod download;
mod guard;
mod images;
mod resolve;
mod url;

pub use download::{Download, DownloadLimits};
pub use guard::{Answer, CallLimits, Guard, GuardBuilder};
pub use images::UrlImages;
pub use resolve::{Resolve, SystemResolver};
pub use url::CheckedUrl;
