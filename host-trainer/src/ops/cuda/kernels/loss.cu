// Cross-entropy over rows of logits [rows, classes]; weights [rows] are divided by their sum already.

// log_sums[r] = log of the sum of exponentials; losses[r] = weights[r] * (log_sums[r] - logits[r, targets[r]]).
template <typename T>
__device__ void cross_entropy_forward(const T* logits, const unsigned int* targets, const float* weights, float* log_sums, float* losses, int rows, int classes) {
    int row = warp_row();
    if (row >= rows) return;
    logits += (long long)row * classes;
    float largest = NO_VALUE;
    for (int c = threadIdx.x; c < classes; c += 32) largest = fmaxf(largest, get(logits, c));
    largest = warp_max(largest);
    float sum = 0.0f;
    for (int c = threadIdx.x; c < classes; c += 32) sum += expf(get(logits, c) - largest);
    sum = warp_sum(sum);
    if (threadIdx.x == 0) {
        float log_sum = largest + logf(sum);
        log_sums[row] = log_sum;
        // A row without a weight may have any target.
        losses[row] = weights[row] == 0.0f ? 0.0f : weights[row] * (log_sum - get(logits, targets[row]));
    }
}

// dx = grad * weights[r] * (softmax - one_hot)
template <typename T>
__device__ void cross_entropy_backward(const T* logits, const unsigned int* targets, const float* weights, const float* log_sums, const float* grad, T* dx, int rows, int classes) {
    int row = warp_row();
    if (row >= rows) return;
    logits += (long long)row * classes;
    dx += (long long)row * classes;
    float weight = weights[row] * grad[0], log_sum = log_sums[row];
    for (int c = threadIdx.x; c < classes; c += 32) {
        float p = weight == 0.0f ? 0.0f : weight * expf(get(logits, c) - log_sum);
        put(dx, c, weight != 0.0f && c == (int)targets[row] ? p - weight : p);
    }
}

// sum[0] = the sum of x [count], by one warp.
extern "C" __global__ void sum_all_f32(const float* x, float* sum, int count) {
    if (warp_row() > 0) return;
    float total = 0.0f;
    for (int i = threadIdx.x; i < count; i += 32) total += x[i];
    total = warp_sum(total);
    if (threadIdx.x == 0) sum[0] = total;
}

extern "C" __global__ void cross_entropy_forward_f32(const float* logits, const unsigned int* targets, const float* weights, float* log_sums, float* losses, int rows, int classes) {
    cross_entropy_forward(logits, targets, weights, log_sums, losses, rows, classes);
}
extern "C" __global__ void cross_entropy_forward_bf16(const bf16* logits, const unsigned int* targets, const float* weights, float* log_sums, float* losses, int rows, int classes) {
    cross_entropy_forward(logits, targets, weights, log_sums, losses, rows, classes);
}
extern "C" __global__ void cross_entropy_backward_f32(const float* logits, const unsigned int* targets, const float* weights, const float* log_sums, const float* grad, float* dx, int rows, int classes) {
    cross_entropy_backward(logits, targets, weights, log_sums, grad, dx, rows, classes);
}
extern "C" __global__ void cross_entropy_backward_bf16(const bf16* logits, const unsigned int* targets, const float* weights, const float* log_sums, const float* grad, bf16* dx, int rows, int classes) {
    cross_entropy_backward(logits, targets, weights, log_sums, grad, dx, rows, classes);
}
