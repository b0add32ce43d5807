//! Differentiation itself: what is recorded, what is freed, and who gets what.

use super::*;

on_each_device!(
    what_the_loss_does_not_need_gets_nothing,
    intermediate_values_and_their_gradients_stay_apart,
    recordings_nest_and_survive_errors,
    operators_on_constants_are_constants,
    a_whole_small_transformer_agrees_with_candle,
);

fn what_the_loss_does_not_need_gets_nothing() {
    let (x, w) = (variable("x", &[4, 3]), variable("w", &[2, 3]));
    let unused = variable("unused", &[2, 3]);
    let mut kept = None;
    let own = differentiate(|| {
        let y = linear(&x, &w, None)?;
        // Computed on the way, for a metric for example; it stays usable afterwards.
        kept = Some(linear(&silu(&x)?, &unused, None)?);
        own_loss(&y)
    })
    .unwrap();
    assert!(own.own_walk);
    assert!(own.grads.get(&unused).is_none());
    assert_eq!(own.grads.get_ids().count(), 2);
    assert_eq!(kept.unwrap().dims(), [4, 2]);
}

fn intermediate_values_and_their_gradients_stay_apart() {
    // Buffers of gradients are used again; none may be one that the caller sees.
    let x = variable("x", &[40, 6]);
    let grads: Vec<Vec<u32>> = (0..3)
        .map(|_| {
            let own = differentiate(|| {
                let a = silu(&x)?;
                let b = gelu(&a)?;
                own_loss(&add(&mul(&a, &b)?, &add(&b, &x)?)?)
            })
            .unwrap();
            bits(grad(&own.grads, &x))
        })
        .collect();
    assert_eq!(grads[0], grads[1]);
    assert_eq!(grads[0], grads[2]);
}

fn recordings_nest_and_survive_errors() {
    let x = variable("x", &[3, 2]);
    let own = differentiate(|| {
        let y = silu(&x)?;
        let inner = differentiate(|| own_loss(&gelu(&x)?))?;
        assert!(inner.own_walk);
        assert!(differentiate(|| Err::<Tensor, _>(candle_core::Error::Msg("on purpose".into()))).is_err());
        own_loss(&mul(&y, grad(&inner.grads, &x))?)
    })
    .unwrap();
    assert!(own.own_walk, "the outer recording goes on after the inner one");
    assert!(own.grads.get(&x).is_some());
}

fn operators_on_constants_are_constants() {
    let x = random("x", &[3, 2]);
    assert!(!silu(&x).unwrap().track_op());
    let own = differentiate(|| own_loss(&silu(&x)?)).unwrap();
    assert_eq!(own.grads.get_ids().count(), 0);
}

fn a_whole_small_transformer_agrees_with_candle() {
    let (batch, seq, width) = (3, 7, 8);
    let names = ["q", "k", "v", "o", "gate", "up", "down"];
    let factors: Vec<(Tensor, Tensor, Tensor)> = names
        .iter()
        .map(|name| {
            let w0 = (random(&format!("{name} w0"), &[width, width]) * 0.4).unwrap();
            (w0, variable(&format!("{name} a"), &[2, width]), variable(&format!("{name} b"), &[width, 2]))
        })
        .collect();
    let ids: Vec<u32> = (0..batch * seq).map(|i| (i * 5 % 11) as u32).collect();
    let ids = Tensor::from_vec(ids, batch * seq, &device()).unwrap();
    let table = random("table", &[11, width]);
    let norm = Tensor::ones(width, candle_core::DType::F32, &device()).unwrap();
    let positions: Vec<u32> = (0..batch).flat_map(|_| 0..seq as u32).collect();
    let rope_table = RopeTable::new(&positions, &[1.0, 0.1], &device()).unwrap();
    let shape = AttentionShape {
        batch,
        seq,
        n_heads: 2,
        n_kv_heads: 2,
        head_size: 4,
        causal: true,
        scale: 0.5,
        lengths: vec![7, 4, 6],
    };
    let weights = Tensor::ones(batch * seq, candle_core::DType::F32, &device()).unwrap();
    let loss = |fused: bool| -> Result<Tensor> {
        let layer = |index: usize, x: &Tensor| {
            let (w0, a, b) = &factors[index];
            let lora = LoraFactors { a, b, scaling: 0.3, dropout_mask: None };
            if fused { lora_linear(x, w0, None, &lora) } else { lora_linear_composed(x, w0, None, &lora) }
        };
        let x = embedding(&table, &ids)?;
        let normed = rms_norm(&x, &norm, 1e-5)?;
        let (q, k, v) = (layer(0, &normed)?, layer(1, &normed)?, layer(2, &normed)?);
        let attended = if fused {
            attention(&rope(&q, &rope_table)?, &rope(&k, &rope_table)?, &v, &shape)?
        } else {
            attention_composed(
                &rope_composed(&q, &rope_table)?,
                &rope_composed(&k, &rope_table)?,
                &v,
                &shape,
            )?
        };
        let o = layer(3, &attended)?;
        let x = if fused { add(&x, &o)? } else { x.add(&o)? };
        let normed = if fused { rms_norm(&x, &norm, 1e-5)? } else { rms_norm_composed(&x, &norm, 1e-5)? };
        let (gate, up) = (layer(4, &normed)?, layer(5, &normed)?);
        let gated = if fused { silu_mul(&gate, &up)? } else { gate.silu()?.mul(&up)? };
        let down = layer(6, &gated)?;
        let x = if fused { add(&x, &down)? } else { x.add(&down)? };
        if fused {
            cross_entropy(&frozen_linear(&x, &table, None)?, &ids, &weights)
        } else {
            cross_entropy_composed(&linear_composed(&x, &table, None)?, &ids, &weights)
        }
    };
    let own = differentiate(|| loss(true)).unwrap();
    assert!(own.own_walk);
    let oracle = loss(false).unwrap();
    assert_close("loss", &own.loss, &oracle, 1e-6);
    let expected = oracle.backward().unwrap();
    for ((_, a, b), name) in factors.iter().zip(names) {
        for factor in [a, b] {
            assert_close(name, grad(&own.grads, factor), grad(&expected, factor), 1e-4);
        }
    }
    assert_eq!(own.grads.get_ids().count(), 14);
}
