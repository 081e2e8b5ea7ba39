//! Refusals, in the form that OpenAI's clients know.

use hyper::StatusCode;
use serde_json::{Value, json};

/// Why a request is not answered: the status, and what the client is told.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    pub status: StatusCode,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// The field that is wrong, as a path: `messages[2].content`.
    pub param: Option<String>,
    pub message: String,
    /// Of a prompt that is too long.
    pub lengths: Option<Box<Lengths>>,
    /// Seconds after which it is worth another try.
    pub retry_after: Option<u64>,
    /// The methods that the path has.
    pub allow: Option<&'static str>,
}

/// Tokens of a prompt, and of the context that it does not fit into.
#[derive(Clone, Debug)]
pub(super) struct Lengths {
    pub n_prompt: usize,
    pub n_ctx: usize,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            code: None,
            param: None,
            message: message.into(),
            lengths: None,
            retry_after: None,
            allow: None,
        }
    }

    /// A request that makes no sense.
    pub(super) fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field that makes no sense; `what` begins as `must be ...`.
    pub(super) fn field(param: impl Into<String>, what: &str) -> ApiError {
        let param = param.into();
        ApiError {
            message: format!("{param} {what}"),
            param: Some(param),
            ..ApiError::bad("")
        }
    }

    pub(super) fn code(self, code: &'static str) -> ApiError {
        let code = Some(code);
        ApiError { code, ..self }
    }

    /// Too much is going on.
    pub(super) fn overloaded(seconds: u64) -> ApiError {
        let message = "too many requests wait already: come again later";
        ApiError {
            retry_after: Some(seconds.clamp(1, 60)),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code("overloaded")
        }
    }

    pub(super) fn shutting_down() -> ApiError {
        ApiError {
            retry_after: Some(5),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending")
                .code("shutting_down")
        }
    }

    /// Something that is not the client's doing; what it is stands in the log.
    pub(super) fn internal() -> ApiError {
        let message = "something went wrong in the server; its log tells what";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).code("internal_error")
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            501 => "not_supported_error",
            503 => "service_unavailable",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    pub(super) fn to_json(&self) -> Value {
        let mut error = json!({
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        });
        if let Some(lengths) = &self.lengths {
            error["n_prompt_tokens"] = lengths.n_prompt.into();
            error["n_ctx"] = lengths.n_ctx.into();
        }
        json!({ "error": error })
    }
}
