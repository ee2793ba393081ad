package llmrate

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"
)

// A Limiter keeps jobs within the limits of their models. It is safe for concurrent use; make one per process with New
// and share it.
//
// Most callers want Run, or Do if the call returns a value: they reserve, wait, escalate, run the function and settle,
// however it ends. Acquire is for work that does not fit in a function, such as a stream handed on; TryAcquire is the
// same without waiting.
type Limiter[M ~string] struct {
	core *core
}

// New makes a limiter. It copies the configuration and reports all its faults at once, each a *FieldError with the
// path of the field. ctx bounds joining the backend, if there is one. Close the limiter when done.
func New[M ~string](ctx context.Context, cfg Config[M]) (*Limiter[M], error) {
	if ctx == nil {
		return nil, &FieldError{Field: "ctx", Problem: "must not be nil"}
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	instance := cfg.InstanceID
	if instance == "" {
		instance = rand.Text()[:8]
	}
	c := &core{
		names:      make(map[string]*jobType, len(cfg.JobTypes)),
		logger:     cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)),
		onEvent:    cfg.OnEvent,
		background: context.WithoutCancel(ctx),
		epoch:      time.Now(),
		jobPrefix:  instance + "-",
	}
	var configured []float64
	for i, name := range slices.Sorted(maps.Keys(cfg.JobTypes)) {
		t := newJobType(name, i, cfg.JobTypes[name], cfg.Models)
		c.types = append(c.types, t)
		c.names[name] = t
		configured = append(configured, cfg.JobTypes[name].Ratio)
	}
	initial := initialRatios(configured)
	now := c.now()
	c.ratios = newRatios(cfg.Ratios.withDefaults(), c.types, initial, now)
	c.memory = newMemoryGate(cfg.Memory.withDefaults(), c.types, initial, len(cfg.Models))
	c.memory.refresh(now)
	for i, m := range cfg.Models {
		p, err := newPool(c, i, m, initial)
		if err != nil {
			return nil, err
		}
		c.pools = append(c.pools, p)
	}
	c.logConfiguration(instance)
	if cfg.Backend != nil {
		params := JoinParams{InstanceID: instance, Wake: c.wakeModel}
		for _, p := range c.pools {
			params.Models = append(params.Models, p.exportedLimits())
		}
		member, err := cfg.Backend.Join(ctx, params)
		if err != nil {
			return nil, err
		}
		c.member = member
	}
	return &Limiter[M]{core: c}, nil
}

func newJobType[M ~string](name string, index int, cfg JobType[M], models []ModelConfig[M]) *jobType {
	t := &jobType{name: name, index: index, memory: cfg.EstimatedMemory, fixed: cfg.FixedRatio, total: cfg.EstimatedTokens}
	t.estimate = Usage{
		Requests:    max(cfg.EstimatedRequests, 1),
		InputTokens: cfg.EstimatedInputTokens, OutputTokens: cfg.EstimatedOutputTokens,
	}
	switch in, out := cfg.EstimatedInputTokens, cfg.EstimatedOutputTokens; {
	case in == 0 && out == 0:
		t.unsplit = true
		t.estimate.InputTokens = cfg.EstimatedTokens
	case cfg.EstimatedTokens > 0 && out == 0:
		t.estimate.OutputTokens = cfg.EstimatedTokens - in
	case cfg.EstimatedTokens > 0 && in == 0:
		t.estimate.InputTokens = cfg.EstimatedTokens - out
	}
	for _, m := range models {
		d, set := cfg.MaxWait[m.ID]
		t.waits = append(t.waits, wait{toNextMinute: !set, d: d})
	}
	return t
}

// need is what a job of the type reserves on a model.
func (t *jobType) need(p *pool) (amounts, error) {
	var need amounts
	err := p.count(t.estimate, &need)
	if t.total > 0 {
		need[resourceIndex(Tokens)] = t.total
	}
	if t.unsplit {
		need[resourceIndex(OutputTokens)] = t.total
	}
	return need, err
}

func newPool[M ~string](c *core, index int, cfg ModelConfig[M], ratios []float64) (*pool, error) {
	p := &pool{
		core: c, name: string(cfg.ID), index: index, pricing: cfg.Pricing, countTokens: cfg.CountTokens,
		customs: len(cfg.Limits.Custom), dims: cfg.Limits.dimensions(), maxConcurrent: cfg.Limits.MaxConcurrent,
		minSlots: int64(cfg.MinCapacity), maxSlots: int64(cfg.MaxCapacity),
	}
	for _, t := range c.types {
		need, err := t.need(p)
		if err != nil {
			return nil, err
		}
		windows := make([]window, len(p.dims))
		for k := range p.dims {
			windows[k] = p.dims[k].window
		}
		p.shares = append(p.shares, share{typ: t, need: need, windows: windows, levels: make([]int64, len(windows))})
	}
	for i := range p.shares {
		p.setRatio(&p.shares[i], ratios[i])
	}
	return p, nil
}

// logConfiguration says what is in force, and what is allowed but probably not meant.
func (c *core) logConfiguration(instance string) {
	sum := 0.0
	for _, t := range c.types {
		ratio := c.ratios.initial[t.index]
		sum += ratio
		c.logger.Info("llmrate: job type", "instance", instance, "jobType", t.name, "ratio", ratio, "fixed", t.fixed)
		for _, p := range c.pools {
			a := attempt{need: p.shares[t.index].need, memory: t.memory}
			if a.need == (amounts{t.estimate.Requests}) && (p.limits(resourceIndex(Tokens)) || p.limits(resourceIndex(InputTokens)) || p.limits(resourceIndex(OutputTokens))) {
				c.logger.Warn("llmrate: this job type has no token estimate: its tokens are charged only when a job ends, and can exceed the model's limits",
					"jobType", t.name, "model", p.name)
			}
			if short, never := p.tooLarge(&a); never {
				c.logger.Warn("llmrate: jobs of this type never fit this model unless their own estimate is smaller",
					"jobType", t.name, "model", p.name, "resource", short.Resource, "estimate", short.Needed, "limit", short.Limit)
			}
		}
	}
	if len(c.types) > 1 && sum < 1-ratioTolerance {
		c.logger.Warn("llmrate: the job types' ratios sum to less than 1; the rest of every model stays unused", "sum", sum)
	}
}

func (p *pool) exportedLimits() ModelLimits {
	l := ModelLimits{Model: p.name, MaxConcurrent: p.maxConcurrent}
	for i := range p.dims {
		d := &p.dims[i]
		l.Dimensions = append(l.Dimensions, Dimension{
			Resource: resources[d.resource], Per: time.Duration(d.per), Max: d.max, Continuous: d.rate > 0, Rate: d.rate,
		})
	}
	return l
}

func (c *core) wakeModel(model string) {
	if p := c.pool(model); p != nil {
		p.mu.Lock()
		p.holdTill = 0
		p.mu.Unlock()
		c.look(p)
	}
}

// Attempt is what a job's function is told about its run.
type Attempt[M ~string] struct {
	Model    M
	Number   int // 1 for the first model that the job runs on
	JobID    string
	Estimate Usage // what is reserved; a total that was not split into input and output is shown as input
}

// Result is what became of a job. It is filled in as far as possible when Run returns an error, too.
type Result[M ~string] struct {
	JobID    string
	Model    M                  // the last model that ran the job
	Usage    Usage              // on that model; zero if unknown
	Cost     float64            // USD, all attempts whose usage is known
	Waited   time.Duration      // for capacity, on all models
	Attempts []AttemptResult[M] // the models that ran the job, in order
}

// AttemptResult is one run of a job on one model.
type AttemptResult[M ~string] struct {
	Model      M
	Usage      Usage // zero if unknown
	UsageKnown bool  // false: the estimate stays charged
	Cost       float64
	Waited     time.Duration // for this model
	Ran        time.Duration
	Err        error // what the function returned, without Reject or Delegate around it
}

// Run runs fn as a job of the given type, on the first model that has room for it, and settles what it used.
//
// How the job ends decides what is charged. fn returns
//
//   - usage and nil: the reservation is corrected to the usage;
//   - an error and no usage: what was used is unknown, so the estimate stays charged;
//   - an error and usage: the reservation is corrected to the usage, also where that is 0;
//   - ErrUsageUnknown: the call succeeded, the estimate stays charged, Run returns nil;
//   - Reject(err, usage): corrected to that usage, the job fails now;
//   - Delegate(err, usage): corrected to that usage, the job goes on to its next model;
//   - or it panics or ends its goroutine: the estimate stays charged and the panic goes on to the caller.
//
// The concurrency slot and the memory come back in every case. fn is called at most once for each model. It gets ctx
// itself: to stop a call early, cancel that. A job that runs another job inside holds its own slot meanwhile.
//
// The error is fn's own (that of Reject without the wrapper, those of Delegate joined), context.Cause(ctx) if ctx ends
// while the job waits, or one of ErrNoCapacity, ErrTooLarge, ErrClosed, ErrUnknownJobType, ErrUnknownModel, or a
// *FieldError for an argument out of range. If fn succeeds but reports a usage out of range, the estimate stays charged
// and the error says so.
func (l *Limiter[M]) Run(ctx context.Context, jobType string, fn func(context.Context, Attempt[M]) (Usage, error), opts ...RunOption) (Result[M], error) {
	var res Result[M]
	if fn == nil {
		return res, &FieldError{Field: "fn", Problem: "must not be nil"}
	}
	c, err := l.ready()
	if err != nil {
		return res, err
	}
	var j job
	if err := c.newJob(ctx, &j, jobType, opts); err != nil {
		return res, err
	}
	first := spareAttempts.Get().(*attempt)
	res.JobID = c.idOf(&j)
	j.spare = first
	res.Attempts = make([]AttemptResult[M], 0, 1)
	for {
		a, err := c.place(ctx, &j)
		res.Waited = j.waited
		if err != nil {
			return res, err
		}
		res.Attempts = append(res.Attempts, AttemptResult[M]{})
		ran := &res.Attempts[len(res.Attempts)-1]
		delegated := runAttempt(ctx, c, a, len(res.Attempts), ran, fn)
		res.Model, res.Usage = ran.Model, ran.Usage
		res.Cost += ran.Cost
		if ran.Err == nil {
			if a == first {
				c.spare(a)
			}
			return res, nil
		}
		if !delegated {
			return res, j.fail(ran.Err)
		}
		c.goOn(ctx, &j, a, ran.Err)
	}
}

// runAttempt runs fn on a reservation and settles it, however fn ends.
func runAttempt[M ~string](ctx context.Context, c *core, a *attempt, number int, r *AttemptResult[M], fn func(context.Context, Attempt[M]) (Usage, error)) (delegated bool) {
	called, settled := false, false
	defer func() {
		if !settled { // fn, or something else of the user's, panicked or ended the goroutine
			_, _ = c.settle(ctx, a, Usage{}, !called, nil)
		}
	}()
	c.started(ctx, a)
	called = true
	used, err := fn(ctx, Attempt[M]{Model: M(a.pool.name), Number: number, JobID: a.jobID, Estimate: a.estimate})
	known := err == nil || !used.isZero()
	if err != nil {
		if v, ok := errors.AsType[*verdict](err); ok {
			used, known, delegated = v.used, true, v.delegate
			if err == error(v) {
				err = v.err
			}
			if _, more := errors.AsType[*verdict](err); more {
				err = &fence{err}
			}
		} else if err == ErrUsageUnknown { // not errors.Is: what is joined to it must not be lost
			used, known, err = Usage{}, false, nil
		}
	}
	used, bad := c.settle(ctx, a, used, known, err)
	if bad != nil {
		used, known, delegated = Usage{}, false, false
		_, _ = c.settle(ctx, a, used, known, err)
		err = errors.Join(bad, err)
	}
	settled = true
	r.Model, r.Usage, r.UsageKnown, r.Cost = M(a.pool.name), used, known, a.pool.pricing.Cost(used)
	r.Waited, r.Ran, r.Err = a.waited, a.ran, err
	return delegated
}

// Do is Run for a function that returns a value: that of the last model that ran it. It is a function and not a method
// because methods have no type parameters of their own.
func Do[T any, M ~string](ctx context.Context, l *Limiter[M], jobType string, fn func(context.Context, Attempt[M]) (T, Usage, error), opts ...RunOption) (T, Result[M], error) {
	var value T
	run := func(ctx context.Context, a Attempt[M]) (used Usage, err error) {
		value, used, err = fn(ctx, a)
		return used, err
	}
	if fn == nil {
		run = nil
	}
	res, err := l.Run(ctx, jobType, run, opts...)
	return value, res, err
}

// Acquire reserves capacity for a job, waiting like Run, and leaves the work to the caller, who must end the
// reservation with Settle or Release: one that never ends is held for ever, and Close waits for it. To go on to another model after a failure, acquire again WithModels. Errors are
// those of Run.
func (l *Limiter[M]) Acquire(ctx context.Context, jobType string, opts ...RunOption) (*Reservation[M], error) {
	return l.acquire(ctx, jobType, false, opts)
}

// TryAcquire is Acquire without waiting for capacity: if no model has room now, or earlier jobs of the type wait, it
// returns ErrNoCapacity.
func (l *Limiter[M]) TryAcquire(ctx context.Context, jobType string, opts ...RunOption) (*Reservation[M], error) {
	return l.acquire(ctx, jobType, true, opts)
}

func (l *Limiter[M]) acquire(ctx context.Context, jobType string, noWait bool, opts []RunOption) (*Reservation[M], error) {
	c, err := l.ready()
	if err != nil {
		return nil, err
	}
	var j job
	if err := c.newJob(ctx, &j, jobType, opts); err != nil {
		return nil, err
	}
	if c.onEvent != nil {
		c.idOf(&j)
	}
	j.noWait = noWait
	r := &Reservation[M]{core: c, ctx: ctx}
	j.spare = &r.memory
	a, err := c.place(ctx, &j)
	if err != nil {
		return nil, err
	}
	r.attempt = a
	done := false
	defer func() {
		if !done { // OnEvent panicked
			_ = r.Settle(Usage{})
		}
	}()
	c.started(ctx, a)
	done = true
	return r, nil
}

// Available is the first model that would run a job of the type now, with its usual estimate; false if none would, or if
// the job type is unknown (TryAcquire tells these apart). By the time of a later call somebody else may have taken the room.
func (l *Limiter[M]) Available(jobType string) (M, bool) {
	c, err := l.ready()
	if err != nil || c.names[jobType] == nil {
		return "", false
	}
	now := c.now()
	for _, p := range c.pools {
		if p.available(now, c.names[jobType]) {
			return M(p.name), true
		}
	}
	return "", false
}

// Close stops admitting jobs, wakes those that wait with ErrClosed, waits until no job runs any more and its last event
// is told, and leaves the backend. If ctx ends first, Close returns its cause; running jobs go on and still settle, and Close may be called
// again to wait for them. Further calls do no harm. Do not call it from within a job: it would wait for itself.
func (l *Limiter[M]) Close(ctx context.Context) error {
	c, err := l.ready()
	if err != nil {
		return err
	}
	if ctx == nil {
		return &FieldError{Field: "ctx", Problem: "must not be nil"}
	}
	var idle []<-chan struct{}
	for _, p := range c.pools {
		idle = append(idle, p.close())
	}
	for _, done := range idle {
		select {
		case <-done:
		default:
			select {
			case <-done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return c.leave(ctx)
}

func (l *Limiter[M]) ready() (*core, error) {
	if l == nil || l.core == nil {
		return nil, &FieldError{Field: "Limiter", Problem: "must be made by New"}
	}
	return l.core, nil
}
