//! The gated feed-forward network's activation.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use pulp::Arch;
use tandem_engine::Level;
use tandem_kernels::lanes::exp;
use tandem_kernels::{Activation, gate};

use super::{like, read, values};

/// `activation(gate) * up`.
pub(in super::super) struct Gate(pub Activation);

impl CustomOp2 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        g_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut y = values(g, g_layout)?.to_vec();
        gate(Level::detect(), self.0, &mut y, values(up, up_layout)?);
        Ok((CpuStorage::F32(y), g_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate_tensor: &Tensor,
        up_tensor: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gate = gate_tensor.storage_and_layout();
        let up = up_tensor.storage_and_layout();
        let grad = grad.storage_and_layout();
        let gate = read(&gate.0, gate.1)?;
        let (up, grad) = (read(&up.0, up.1)?, read(&grad.0, grad.1)?);
        let mut grad_gate = vec![0.0; gate.len()];
        let mut grad_up = vec![0.0; gate.len()];
        let inputs = gate.iter().zip(up).zip(grad);
        let outputs = grad_gate.iter_mut().zip(&mut grad_up);
        let all = inputs.zip(outputs);
        let arch = Arch::new();
        match self.0 {
            Activation::Silu => arch.dispatch(|| {
                for (((x, up), d), (dx, d_up)) in all {
                    let s = 1.0 / (1.0 + exp(-x));
                    *dx = d * up * s * (1.0 + x * (1.0 - s));
                    *d_up = d * x * s;
                }
            }),
            Activation::GeluTanh => arch.dispatch(|| {
                for (((x, up), d), (dx, d_up)) in all {
                    // x s(2 z) with the logistic function s and z as in `Activation::apply`
                    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
                    let z = SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
                    let dz = SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x);
                    let s = 1.0 / (1.0 + exp(-2.0 * z));
                    *dx = d * up * (s + 2.0 * x * s * (1.0 - s) * dz);
                    *d_up = d * x * s;
                }
            }),
            Activation::ReluSquared => arch.dispatch(|| {
                for (((x, up), d), (dx, d_up)) in all {
                    let positive = if *x < 0.0 { 0.0 } else { *x };
                    *dx = d * up * 2.0 * positive;
                    *d_up = d * positive * positive;
                }
            }),
            Activation::QuickGelu => arch.dispatch(|| {
                for (((x, up), d), (dx, d_up)) in all {
                    let s = 1.0 / (1.0 + exp(-1.702 * *x));
                    *dx = d * up * s * (1.0 + 1.702 * x * (1.0 - s));
                    *d_up = d * x * s;
                }
            }),
            Activation::Xielu(f) => arch.dispatch(|| {
                for (((x, up), d), (dx, d_up)) in all {
                    let slope = match (*x > 0.0, *x < f.eps) {
                        (true, _) => 2.0 * f.positive * x,
                        (false, true) => f.negative * (exp(*x) - 1.0),
                        (false, false) => -f.negative,
                    };
                    *dx = d * up * (slope + f.linear);
                    *d_up = d * Activation::Xielu(f).apply(*x);
                }
            }),
            Activation::Sigmoid => arch.dispatch(|| {
                for (((x, up), d), (dx, d_up)) in all {
                    let s = 1.0 / (1.0 + exp(-*x));
                    *dx = d * up * s * (1.0 - s);
                    *d_up = d * s;
                }
            }),
        }
        Ok((
            Some(like(gate_tensor, grad_gate)?),
            Some(like(up_tensor, grad_up)?),
        ))
    }
}
