//! Operators over groups of rows: each group gets the bits that it gets alone.

use candle_core::Device;

use super::*;

/// Rows of a tensor without its history.
fn rows(t: &Tensor, first: usize, count: usize) -> Tensor {
    t.narrow(0, first, count).unwrap().detach()
}

/// The same as a variable of its own.
fn own(t: &Tensor, first: usize, count: usize) -> Tensor {
    Var::from_tensor(&rows(t, first, count).copy().unwrap()).unwrap().into_inner()
}

#[test]
fn slices_of_rows() {
    let x = variable("x", &[9, 4]);
    let halves = |t: &[Tensor]| mul(&slice_rows(&t[0], 1, 5)?, &slice_rows(&t[0], 4, 5)?);
    let composed = |t: &[Tensor]| Ok(t[0].narrow(0, 1, 5)?.mul(&t[0].narrow(0, 4, 5)?)?);
    check_operator("slice_rows", std::slice::from_ref(&x), halves, composed);
    let error = slice_rows(&x, 5, 5).unwrap_err().to_string();
    assert_eq!(error, "slice_rows: the end of the slice is 10, expected at most 9");
}

#[test]
fn attention_over_batches_of_other_lengths() {
    let shape = |batch, seq, lengths| AttentionShape {
        batch,
        seq,
        n_heads: 4,
        n_kv_heads: 2,
        head_size: 3,
        causal: true,
        scale: 0.6,
        lengths,
    };
    for causal in [true, false] {
        let shapes = [shape(2, 17, vec![]), shape(3, 5, vec![5, 2, 4]), shape(1, 1, vec![])]
            .map(|shape| AttentionShape { causal, ..shape });
        let count = 2 * 17 + 3 * 5 + 1;
        let t = [variable("q", &[count, 12]), variable("k", &[count, 6]), variable("v", &[count, 6])];
        let y = attention_batches(&t[0], &t[1], &t[2], &shapes).unwrap();
        let weights = random("loss", &[count, 12]);
        let total = |y: &Tensor, weights: &Tensor| y.mul(weights).unwrap().sum_all().unwrap();
        let together = total(&y, &weights).backward().unwrap();
        let mut first = 0;
        for shape in &shapes {
            let count = shape.batch * shape.seq;
            let part = t.each_ref().map(|t| own(t, first, count));
            let alone = attention(&part[0], &part[1], &part[2], shape).unwrap();
            assert_eq!(bits(&rows(&y, first, count)), bits(&alone), "{shape:?}");
            let grads = total(&alone, &rows(&weights, first, count)).backward().unwrap();
            for (t, part) in t.iter().zip(&part) {
                let found = rows(grad(&together, t), first, count);
                assert_eq!(bits(&found), bits(grad(&grads, part)), "{shape:?}");
            }
            first += count;
        }
        check_threads("attention_batches", &t, &|t: &[Tensor]| {
            attention_batches(&t[0], &t[1], &t[2], &shapes)
        });
    }
    let q = random("q", &[7, 12]);
    let error = attention_batches(&q, &q, &q, &[shape(2, 4, vec![])]).unwrap_err().to_string();
    assert_eq!(error, "attention_batches: the rows of the batches is 8, expected 7");
}

#[test]
fn a_sum_of_mean_losses_leaves_each_its_own_gradient() {
    // The first group has several pieces with partial sums of their own.
    let (groups, classes) = ([4000, 2, 70], 11);
    let count: usize = groups.iter().sum();
    let logits = variable("logits", &[count, classes]);
    let mut rng = Rng::new(2, "targets");
    let targets: Vec<u32> = (0..count).map(|_| rng.below(classes as u64) as u32).collect();
    let weights: Vec<f32> = (0..count).map(|row| [1.0, 0.0, 0.25][row % 3]).collect();
    let targets = Tensor::from_vec(targets, count, &Device::Cpu).unwrap();
    let weights = Tensor::from_vec(weights, count, &Device::Cpu).unwrap();
    let losses = cross_entropy_groups(&logits, &targets, &weights, &groups).unwrap();
    let run = || Ok(cross_entropy_groups(&logits, &targets, &weights, &groups)?.total);
    let together = differentiate::<OpError>(run).unwrap();
    assert!(together.own_walk);
    let mut first = 0;
    let mut sum = 0.0;
    for (count, loss) in groups.into_iter().zip(&losses.each) {
        let part = own(&logits, first, count);
        let alone = cross_entropy(&part, &rows(&targets, first, count), &rows(&weights, first, count));
        let alone = alone.unwrap();
        assert_eq!(bits(loss), bits(&alone));
        sum += values(&alone)[0];
        let found = rows(grad(&together.grads, &logits), first, count);
        assert_eq!(bits(&found), bits(grad(&alone.backward().unwrap(), &part)));
        first += count;
    }
    assert_eq!(values(&together.loss)[0], sum);
    let short = cross_entropy_groups(&logits, &targets, &weights, &[4000]).unwrap_err().to_string();
    assert_eq!(short, "cross_entropy: the rows of the groups is 4000, expected 4072");
}
