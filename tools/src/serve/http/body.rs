//! Reading requests' bodies, within bounds.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header;
use tokio::time::timeout;

use crate::serve::Server;
use crate::serve::error::ApiError;

/// All bodies that are being read, together.
const MAX_BODY_BYTES: usize = 64 << 20;

/// A request's body, counted among the bytes of all until it was read.
pub(super) struct HeldBody {
    server: Arc<Server>,
    pub bytes: Vec<u8>,
}

impl HeldBody {
    fn add(&mut self, data: &[u8]) -> Result<(), ApiError> {
        let before = self.server.n_body_bytes.fetch_add(data.len(), Relaxed);
        self.bytes.extend_from_slice(data);
        match before + data.len() > MAX_BODY_BYTES {
            true => Err(ApiError::overloaded(1)),
            false => Ok(()),
        }
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        self.server
            .n_body_bytes
            .fetch_sub(self.bytes.len(), Relaxed);
    }
}

pub(super) async fn read_body(
    server: &Arc<Server>,
    headers: &hyper::HeaderMap,
    mut body: Incoming,
) -> Result<HeldBody, ApiError> {
    let too_large = || {
        let message = format!("the body is larger than {} bytes", server.max_body);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("request_too_large")
    };
    let claimed = headers.get(header::CONTENT_LENGTH);
    let claimed = claimed.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if claimed.is_some_and(|n| n > server.max_body as u64) {
        return Err(too_large());
    }
    let mut held = HeldBody {
        server: Arc::clone(server),
        bytes: Vec::new(),
    };
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::bad("the body cannot be read"))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if held.bytes.len() + data.len() > server.max_body {
                return Err(too_large());
            }
            held.add(&data)?;
        }
        Ok(())
    };
    let read = timeout(server.timeout_read, reading).await;
    read.unwrap_or_else(|_| {
        let message = "the body did not come in time";
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
    })?;
    Ok(held)
}
