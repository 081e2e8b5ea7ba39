//! Which weights are no finite numbers, asked when a pass gave none.

use alloc::string::String;

use tandem_kernels::quant;

use super::Model;

/// Elements decoded at once: a whole number of every type's blocks.
const RUN: usize = 256;

impl Model {
    /// The first of the file's tensors that has an element which is NaN or infinite. It reads all weights.
    pub(crate) fn non_finite_tensor(&self) -> Option<String> {
        let gguf = self.gguf().ok()?;
        let mut run = [0.0; RUN];
        for tensor in gguf.tensors() {
            let dtype = tensor.dtype;
            let run_bytes = RUN / dtype.block_len() * dtype.block_bytes();
            for bytes in tensor.data.chunks(run_bytes) {
                let run = &mut run[..bytes.len() / dtype.block_bytes() * dtype.block_len()];
                quant::dequantize(dtype, bytes, run);
                if !run.iter().all(|x| x.is_finite()) {
                    return Some(tensor.name.into());
                }
            }
        }
        None
    }
}
