//! How large a GGUF file's parts may be. Real files stay well below; a count above one of these is
//! a broken or hostile file, refused before anything is reserved for it.

/// Metadata entries of a file.
pub const MAX_KEYS: usize = 1 << 16;
/// Tensors of a model, all parts of a split one together.
pub const MAX_TENSORS: usize = 1 << 20;
/// Bytes of a key; the format's own limit.
pub const MAX_KEY_BYTES: usize = (1 << 16) - 1;
/// Bytes of a tensor's name. The format says 64, which some writers exceed.
pub const MAX_NAME_BYTES: usize = 1024;
/// Bytes of a string value or of a string in an array (64 MiB; some files embed a whole
/// `tokenizer.json`).
pub const MAX_STRING_BYTES: usize = 1 << 26;
/// Elements of an array (the largest vocabularies have some 300,000 tokens).
pub const MAX_ARRAY_LEN: usize = 1 << 24;
/// Dimensions of a tensor; the format's own limit.
pub const MAX_DIMS: usize = 4;
/// Parts of a split model; `split.no` is a U16.
pub const MAX_PARTS: usize = (1 << 16) - 1;
