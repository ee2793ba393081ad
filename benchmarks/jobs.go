package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/llmrate/llmrate"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

// A Contestant runs jobs under five limits: requests and tokens per minute and per day, and concurrency.
type Contestant interface {
	// Job runs the i-th job: acquire, run, release. An error means that a premise does not hold.
	Job(ctx context.Context, i int) error

	// Check looks after so many jobs whether all limits were charged for them and nothing is held any more.
	Check(jobs int) error
}

// Contestants of the uncontended benchmarks. The first is the one that the others are compared with.
var Contestants = []struct {
	Name string
	New  func() (Contestant, error)
}{
	{"composed", func() (Contestant, error) { return newComposed(generous), nil }},
	{"composed/one-clock-reading", func() (Contestant, error) { return composedOneReading{newComposed(generous)}, nil }},
	{"llmrate", func() (Contestant, error) { return newLimited(generous) }},
	{"llmrate/continuous", func() (Contestant, error) { return newLimited(buckets) }},
	{"llmrate/acquire-settle", func() (Contestant, error) {
		l, err := newLimited(generous)
		return reserved{l}, err
	}},
}

const model = "model"

// Two job types, used in turn.
var jobTypes = [2]struct {
	name     string
	estimate int64
}{{"chat", 2_000}, {"summary", 10_000}}

// used is what every job uses: less than its estimate, so that there is something to correct.
var used = llmrate.Usage{Requests: 1, InputTokens: 1_200, OutputTokens: 300}

// generous limits never refuse a job here.
var generous = llmrate.Limits{
	RequestsPerMinute: llmrate.MaxAmount, RequestsPerDay: llmrate.MaxAmount,
	TokensPerMinute: llmrate.MaxAmount, TokensPerDay: llmrate.MaxAmount,
	MaxConcurrent: 1_000,
}

// buckets refill more slowly than one core takes out of them: they are not full when a job comes, nor empty before some
// ten seconds.
var buckets = llmrate.Limits{
	RequestsPerMinute: 60e6, RequestsPerDay: 60e6 * 60 * 24,
	TokensPerMinute: 48e9, TokensPerDay: 48e9 * 60 * 24,
	MaxConcurrent: 1_000,
	Refill:        llmrate.Continuous,
}

// composed is the same by hand: four rate limiters and a semaphore. It has no job types, and cannot correct an estimate
// afterwards: a rate.Limiter takes nothing back.
type composed struct {
	limits         llmrate.Limits
	requestsMinute *rate.Limiter
	requestsDay    *rate.Limiter
	tokensMinute   *rate.Limiter
	tokensDay      *rate.Limiter
	slots          *semaphore.Weighted
}

func newComposed(l llmrate.Limits) *composed {
	limiter := func(limit int64, per time.Duration) *rate.Limiter {
		return rate.NewLimiter(rate.Limit(float64(limit)/per.Seconds()), int(limit))
	}
	return &composed{
		limits:         l,
		requestsMinute: limiter(l.RequestsPerMinute, time.Minute),
		requestsDay:    limiter(l.RequestsPerDay, 24*time.Hour),
		tokensMinute:   limiter(l.TokensPerMinute, time.Minute),
		tokensDay:      limiter(l.TokensPerDay, 24*time.Hour),
		slots:          semaphore.NewWeighted(l.MaxConcurrent),
	}
}

// run waits for the rates first and for a slot last, so that no slot is held by a job that may not start yet.
func (c *composed) run(ctx context.Context, tokens int, fn func(context.Context) (llmrate.Usage, error)) (llmrate.Usage, error) {
	if err := c.requestsMinute.WaitN(ctx, 1); err != nil {
		return llmrate.Usage{}, err
	}
	if err := c.requestsDay.WaitN(ctx, 1); err != nil {
		return llmrate.Usage{}, err
	}
	if err := c.tokensMinute.WaitN(ctx, tokens); err != nil {
		return llmrate.Usage{}, err
	}
	if err := c.tokensDay.WaitN(ctx, tokens); err != nil {
		return llmrate.Usage{}, err
	}
	if err := c.slots.Acquire(ctx, 1); err != nil {
		return llmrate.Usage{}, err
	}
	defer c.slots.Release(1)
	return fn(ctx)
}

func (c *composed) Job(ctx context.Context, i int) error {
	got, err := c.run(ctx, int(jobTypes[i&1].estimate), func(context.Context) (llmrate.Usage, error) { return used, nil })
	return checkUsage(got, err)
}

func (c *composed) Check(jobs int) error {
	if jobs == 0 {
		return nil
	}
	long := time.Time{} // a time before the last charge shows what was left right after that
	for _, l := range []struct {
		name string
		*rate.Limiter
		least float64
	}{
		{"requests per minute", c.requestsMinute, 1}, {"requests per day", c.requestsDay, 1},
		{"tokens per minute", c.tokensMinute, float64(jobTypes[0].estimate)}, {"tokens per day", c.tokensDay, float64(jobTypes[0].estimate)},
	} {
		switch left := l.TokensAt(long); {
		case left > float64(l.Burst())-l.least:
			return fmt.Errorf("composed: the last job was not charged to %s", l.name)
		case left < 0:
			return fmt.Errorf("composed: %s were used up, jobs have waited", l.name)
		}
	}
	if !c.slots.TryAcquire(c.limits.MaxConcurrent) {
		return errors.New("composed: slots are still held")
	}
	c.slots.Release(c.limits.MaxConcurrent)
	return nil
}

// composedOneReading reads the clock once for all four rate limiters, and if need be waits once, for the slowest.
type composedOneReading struct{ *composed }

func (c composedOneReading) run(ctx context.Context, tokens int, fn func(context.Context) (llmrate.Usage, error)) (llmrate.Usage, error) {
	now := time.Now()
	rm, rd := c.requestsMinute.ReserveN(now, 1), c.requestsDay.ReserveN(now, 1)
	tm, td := c.tokensMinute.ReserveN(now, tokens), c.tokensDay.ReserveN(now, tokens)
	delay := max(rm.DelayFrom(now), rd.DelayFrom(now), tm.DelayFrom(now), td.DelayFrom(now))
	if delay > 0 {
		if err := sleep(ctx, delay, rm, rd, tm, td); err != nil {
			return llmrate.Usage{}, err
		}
	}
	if err := c.slots.Acquire(ctx, 1); err != nil {
		return llmrate.Usage{}, err
	}
	defer c.slots.Release(1)
	return fn(ctx)
}

func sleep(ctx context.Context, d time.Duration, taken ...*rate.Reservation) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		for _, r := range taken {
			r.Cancel()
		}
		return ctx.Err()
	}
}

func (c composedOneReading) Job(ctx context.Context, i int) error {
	got, err := c.run(ctx, int(jobTypes[i&1].estimate), func(context.Context) (llmrate.Usage, error) { return used, nil })
	return checkUsage(got, err)
}

// limited is llmrate.
type limited struct {
	*llmrate.Limiter[string]
	limits llmrate.Limits
	start  time.Time
}

func newLimited(l llmrate.Limits) (*limited, error) {
	types := make(map[string]llmrate.JobType[string])
	for _, t := range jobTypes {
		types[t.name] = llmrate.JobType[string]{EstimatedTokens: t.estimate}
	}
	start := time.Now()
	limiter, err := llmrate.New(context.Background(), llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: model, Limits: l}},
		JobTypes: types,
	})
	return &limited{limiter, l, start}, err
}

func (l *limited) Job(ctx context.Context, i int) error {
	res, err := l.Run(ctx, jobTypes[i&1].name, func(context.Context, llmrate.Attempt[string]) (llmrate.Usage, error) { return used, nil })
	if err == nil && res.Waited != 0 {
		return fmt.Errorf("llmrate: a job waited %s", res.Waited)
	}
	return checkUsage(res.Usage, err)
}

func (l *limited) Check(jobs int) error {
	st := l.Stats()
	m := st.Models[model]
	for _, w := range []struct {
		name string
		llmrate.WindowStats
		limit int64
		per   time.Duration
		want  int64
	}{
		{"requests per minute", m.RequestsPerMinute, l.limits.RequestsPerMinute, time.Minute, int64(jobs)},
		{"requests per day", m.RequestsPerDay, l.limits.RequestsPerDay, 24 * time.Hour, int64(jobs)},
		{"tokens per minute", m.TokensPerMinute, l.limits.TokensPerMinute, time.Minute, int64(jobs) * used.TotalTokens()},
		{"tokens per day", m.TokensPerDay, l.limits.TokensPerDay, 24 * time.Hour, int64(jobs) * used.TotalTokens()},
	} {
		same := l.limits.Refill == llmrate.FixedWindow && !w.ResetsAt.Add(-w.per).After(l.start) // the window still open
		if w.Limit != w.limit || w.Used > w.want || same && w.Used != w.want {
			return fmt.Errorf("llmrate: %s: after %d jobs %d of %d are charged, want %d of %d", w.name, jobs, w.Used, w.Limit, w.want, w.limit)
		}
	}
	if m.Concurrency.Limit != l.limits.MaxConcurrent || m.Concurrency.Active != 0 || len(st.JobTypes) != len(jobTypes) || len(st.Jobs) != 0 {
		return fmt.Errorf("llmrate: %+v, %d job types, %d jobs left", m.Concurrency, len(st.JobTypes), len(st.Jobs))
	}
	return nil
}

// reserved is llmrate by Acquire and Settle instead of Run.
type reserved struct{ *limited }

func (l reserved) Job(ctx context.Context, i int) error {
	r, err := l.Acquire(ctx, jobTypes[i&1].name)
	if err != nil {
		return err
	}
	defer r.Release()
	return r.Settle(used)
}

func checkUsage(got llmrate.Usage, err error) error {
	if err == nil && got != used {
		return fmt.Errorf("usage is %+v, want %+v", got, used)
	}
	return err
}

// CheckLimits checks that each of the five limits alone is enough to keep a second job out, in every contestant.
func CheckLimits() error {
	var errs []error
	for _, tight := range []struct {
		resource string
		per      time.Duration
		limits   func(*llmrate.Limits)
	}{
		{"requests", time.Minute, func(l *llmrate.Limits) { l.RequestsPerMinute = 1 }},
		{"requests", 24 * time.Hour, func(l *llmrate.Limits) { l.RequestsPerDay = 1 }},
		{"tokens", time.Minute, func(l *llmrate.Limits) { l.TokensPerMinute = jobTypes[0].estimate }},
		{"tokens", 24 * time.Hour, func(l *llmrate.Limits) { l.TokensPerDay = jobTypes[0].estimate }},
		{"concurrency", 0, func(l *llmrate.Limits) { l.MaxConcurrent = 1 }},
	} {
		what := fmt.Sprintf("limit of one job in %s per %s", tight.resource, tight.per)
		ctx, tokens := context.Background(), int(jobTypes[0].estimate)
		for _, refill := range []llmrate.Refill{llmrate.FixedWindow, llmrate.Continuous} {
			limits := generous
			limits.Refill = refill
			tight.limits(&limits)
			l, err := newLimited(limits)
			if err != nil {
				return err
			}
			var second error
			_, err = l.Run(ctx, jobTypes[0].name, func(ctx context.Context, _ llmrate.Attempt[string]) (llmrate.Usage, error) {
				_, second = l.TryAcquire(ctx, jobTypes[0].name)
				return used, nil
			})
			full, ok := errors.AsType[*llmrate.CapacityError](second)
			if err != nil || !ok || full.Models[0].Resource != tight.resource || full.Models[0].Per != tight.per {
				errs = append(errs, fmt.Errorf("llmrate, %s: first job %v, second job %v", what, err, second))
			}
		}

		limits := generous
		tight.limits(&limits)
		one, all := newComposed(limits), composedOneReading{newComposed(limits)}
		for name, run := range map[string]func(context.Context, int, func(context.Context) (llmrate.Usage, error)) (llmrate.Usage, error){
			"composed": one.run, "composed/one-clock-reading": all.run,
		} {
			var second error
			_, err := run(ctx, tokens, func(ctx context.Context) (llmrate.Usage, error) {
				ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
				defer cancel()
				_, second = run(ctx, tokens, func(context.Context) (llmrate.Usage, error) { return used, nil })
				return used, nil
			})
			if err != nil || second == nil {
				errs = append(errs, fmt.Errorf("%s, %s: first job %v, second job %v", name, what, err, second))
			}
		}
	}
	return errors.Join(errs...)
}

// RunJobs runs n jobs one after the other.
func RunJobs(ctx context.Context, c Contestant, n int) error {
	for i := range n {
		if err := c.Job(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// RunParallel runs n jobs in so many goroutines.
func RunParallel(ctx context.Context, c Contestant, n, goroutines int) error {
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		part := n / goroutines
		if g < n%goroutines {
			part++
		}
		wg.Go(func() { errs[g] = RunJobs(ctx, c, part) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
