package llmrate

import "context"

// A Reservation is capacity held for one job on one model: its estimate in every limit, a concurrency slot and memory.
// End it with Settle when the usage is known, or with Release when it is not. It is safe for concurrent use; the first
// end counts.
//
//	r, err := limiter.Acquire(ctx, "chat")
//	if err != nil {
//		return err
//	}
//	defer r.Release() // does nothing after Settle
type Reservation[M ~string] struct {
	core    *core
	ctx     context.Context // for events only
	attempt *attempt
	memory  attempt // of the first attempt, so that it needs no allocation of its own
}

// Model is the model that has the room.
func (r *Reservation[M]) Model() M {
	if r == nil || r.attempt == nil {
		return ""
	}
	return M(r.attempt.pool.name)
}

// JobID is the job's ID, as in events.
func (r *Reservation[M]) JobID() string {
	if r == nil || r.attempt == nil {
		return ""
	}
	return r.attempt.id()
}

// Estimate is what is reserved, as in Attempt.
func (r *Reservation[M]) Estimate() Usage {
	if r == nil || r.attempt == nil {
		return Usage{}
	}
	return r.attempt.estimate
}

// Settle ends the reservation and corrects it to what was used; the zero Usage refunds everything. It returns ErrSettled
// if the reservation has ended before, or a *FieldError for a usage out of range. Then nothing is changed, and in the
// second case the reservation is still open.
func (r *Reservation[M]) Settle(used Usage) error {
	if r == nil || r.attempt == nil {
		return &FieldError{Field: "Reservation", Problem: "must come from Acquire or TryAcquire"}
	}
	_, err := r.core.settle(r.ctx, r.attempt, used, true, nil)
	return err
}

// Release ends the reservation without knowing what was used: the estimate stays charged, the concurrency slot and the
// memory come back. It does nothing if the reservation has ended before, or is nil.
func (r *Reservation[M]) Release() {
	if r != nil && r.attempt != nil {
		_, _ = r.core.settle(r.ctx, r.attempt, Usage{}, false, nil)
	}
}
