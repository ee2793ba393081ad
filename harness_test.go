package llmrate_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// The scenario tests run in virtual time, which begins at a midnight: the edge of a minute and of a day. Nothing takes
// any time unless it sleeps, so that points in time can be compared for equality.

type (
	config      = llmrate.Config[string]
	modelConfig = llmrate.ModelConfig[string]
	limits      = llmrate.Limits
	jobType     = llmrate.JobType[string]
	jobTypes    = map[string]llmrate.JobType[string]
	maxWait     = map[string]time.Duration
	usage       = llmrate.Usage
	limiter     = llmrate.Limiter[string]
	jobFunc     = func(context.Context, llmrate.Attempt[string]) (llmrate.Usage, error)
)

const (
	minute = time.Minute
	day    = 24 * time.Hour
	mib    = int64(1 << 20)
)

// scenario is a subtest in virtual time.
func scenario(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

var midnight = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC)

// elapsed is the virtual time since the scenario began.
func elapsed() time.Duration { return time.Since(midnight) }

// sleepUntil sleeps to a virtual time since the scenario began, and lets everybody act who is due by then.
func sleepUntil(at time.Duration) {
	time.Sleep(at - elapsed())
	synctest.Wait()
}

// newLimiter makes a limiter and closes it when the test is over. Then nothing may be left in it.
func newLimiter(t *testing.T, cfg config) *limiter {
	t.Helper()
	l, err := llmrate.New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*day)
		defer cancel()
		assert.NoError(t, l.Close(ctx))
		st := l.Stats()
		assert.Empty(t, st.Jobs, "jobs left")
		assert.Zero(t, st.Memory.Used, "memory left")
		for id, m := range st.Models {
			assert.Zero(t, m.Concurrency.Active, "active on %s", id)
			assert.Zero(t, m.Concurrency.Waiting, "waiting on %s", id)
		}
	})
	return l
}

// tokens is the usage of one request with n input tokens.
func tokens(n int64) usage { return usage{Requests: 1, InputTokens: n} }

// job takes d and uses u.
func job(d time.Duration, u usage) jobFunc {
	return func(ctx context.Context, _ llmrate.Attempt[string]) (usage, error) {
		if err := sleep(ctx, d); err != nil {
			return usage{}, err
		}
		return u, nil
	}
}

// sleep for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// jobs launches jobs with Run and records what becomes of them.
type jobs struct {
	t   *testing.T
	l   *limiter
	all sync.WaitGroup

	mu       sync.Mutex
	launched int
	begun    []begun
	ended    []ended
}

// begun is a call of a job's function.
type begun struct {
	job     int // in the order of launching, from 0
	jobType string
	model   string
	at      time.Duration
}

// ended is what Run returned.
type ended struct {
	job     int
	jobType string
	at      time.Duration
	result  llmrate.Result[string]
	err     error
}

// runJobs launches n jobs at once. They queue in the order of launching.
func runJobs(t *testing.T, l *limiter, jobType string, n int, fn jobFunc, opts ...llmrate.RunOption) *jobs {
	j := &jobs{t: t, l: l}
	j.run(jobType, n, fn, opts...)
	return j
}

// run launches n more.
func (j *jobs) run(jobType string, n int, fn jobFunc, opts ...llmrate.RunOption) {
	for range n {
		j.mu.Lock()
		number := j.launched
		j.launched++
		j.mu.Unlock()
		j.all.Go(func() {
			res, err := j.l.Run(j.t.Context(), jobType, func(ctx context.Context, a llmrate.Attempt[string]) (usage, error) {
				j.mu.Lock()
				j.begun = append(j.begun, begun{number, jobType, a.Model, elapsed()})
				j.mu.Unlock()
				return fn(ctx, a)
			}, opts...)
			j.mu.Lock()
			defer j.mu.Unlock()
			j.ended = append(j.ended, ended{number, jobType, elapsed(), res, err})
		})
		synctest.Wait()
	}
}

// begins are the calls so far, in order: of one job type, or of all for "".
func (j *jobs) begins(jobType string) []begun {
	synctest.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(j.begun), func(b begun) bool { return jobType != "" && b.jobType != jobType })
}

// times are the times of these calls.
func (j *jobs) times(jobType string) []time.Duration {
	var at []time.Duration
	for _, b := range j.begins(jobType) {
		at = append(at, b.at)
	}
	return at
}

// on counts the calls on a model so far.
func (j *jobs) on(model string) int {
	n := 0
	for _, b := range j.begins("") {
		if b.model == model {
			n++
		}
	}
	return n
}

// ends are the jobs that have ended so far, in order.
func (j *jobs) ends() []ended {
	synctest.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.ended)
}

// wait until all have ended, without an error.
func (j *jobs) wait() {
	j.t.Helper()
	j.all.Wait()
	for _, e := range j.ends() {
		require.NoError(j.t, e.err, "job %d", e.job)
	}
}

// acquire a reservation that has to be had at once; it is released at the end of the test, if not before.
func acquire(t *testing.T, l *limiter, jobType string, opts ...llmrate.RunOption) *llmrate.Reservation[string] {
	t.Helper()
	r, err := l.TryAcquire(t.Context(), jobType, opts...)
	require.NoError(t, err)
	t.Cleanup(r.Release)
	return r
}

// requireFull checks that nothing of the job type can start now.
func requireFull(t *testing.T, l *limiter, jobType string, opts ...llmrate.RunOption) {
	t.Helper()
	r, err := l.TryAcquire(t.Context(), jobType, opts...)
	r.Release()
	require.ErrorIs(t, err, llmrate.ErrNoCapacity)
}

// fill acquires as many reservations as there is room for, and leaves them to the end of the test.
func fill(t *testing.T, l *limiter, jobType string, opts ...llmrate.RunOption) (n int) {
	t.Helper()
	for {
		r, err := l.TryAcquire(t.Context(), jobType, opts...)
		if err != nil {
			require.ErrorIs(t, err, llmrate.ErrNoCapacity)
			return n
		}
		t.Cleanup(r.Release)
		n++
		require.Less(t, n, 100_000, "no limit")
	}
}

// slots of a job type on a model.
func slots(l *limiter, model, jobType string) int {
	return l.Stats().Models[model].JobTypes[jobType].Slots
}

// recorder collects events.
type recorder struct {
	mu     sync.Mutex
	events []llmrate.Event
}

// record is a Config.OnEvent.
func (r *recorder) record(_ context.Context, e llmrate.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// eventsOf returns the recorded events of one type, in order.
func eventsOf[E llmrate.Event](r *recorder) []E {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []E
	for _, e := range r.events {
		if e, ok := e.(E); ok {
			found = append(found, e)
		}
	}
	return found
}

// repeat is a list of n times at.
func repeat(n int, at time.Duration) []time.Duration {
	return slices.Repeat([]time.Duration{at}, n)
}
