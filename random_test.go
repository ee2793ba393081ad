package llmrate_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// TestRandom draws a configuration and jobs of every kind, lets them run in virtual time, and has an oracle recount
// everything after every step.
//
// LLMRATE_SEEDS is how many seeds to run (default 400), beginning with LLMRATE_SEED (default 1). A failure names its
// seed; LLMRATE_SEED alone runs just that one, with -v showing each step:
//
//	LLMRATE_SEED=42 go test -race -run TestRandom -v .
func TestRandom(t *testing.T) {
	number := func(name string) (n uint64, set bool) {
		text := os.Getenv(name)
		if text == "" {
			return 0, false
		}
		n, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, name)
		return n, true
	}
	first, one := number("LLMRATE_SEED")
	count, many := number("LLMRATE_SEEDS")
	switch {
	case many:
	case one:
		count = 1
	default:
		count = 400
		if testing.Short() {
			count = 15
		}
	}
	seeds := make(chan uint64)
	go func() {
		defer close(seeds)
		for i := range count {
			seeds <- cmp.Or(first, 1) + i
		}
	}()
	var mu sync.Mutex
	var total randomCounts
	t.Run("seeds", func(t *testing.T) {
		for worker := range min(runtime.GOMAXPROCS(0), int(count)) {
			t.Run(fmt.Sprintf("worker=%d", worker), func(t *testing.T) {
				t.Parallel()
				for seed := range seeds {
					t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							w := newRandomWorld(t, seed, count == 1)
							w.play()
							mu.Lock()
							total.add(w)
							mu.Unlock()
						})
					})
				}
			})
		}
	})
	t.Log(total)
	if count >= 100 && !t.Failed() { // the premise: that much of everything does happen
		require.Greater(t, total.starts, 20*int(count))
		for what, n := range map[string]int{
			"waits": total.waits, "escalations": total.escalations, "canceled": total.canceled, "expired": total.expired,
			"heads": total.heads, "overages": total.overages, "cycles": total.cycles, "sure": total.sure,
		} {
			require.Greater(t, n, int(count)/4, what)
		}
		require.NotZero(t, total.failedFast)
		require.NotZero(t, total.tooLarge)
	}
}

// randomCounts says how much of what has happened.
type randomCounts struct {
	steps, starts, waits, escalations, canceled, expired, failedFast, tooLarge, heads, overages, cycles, sure int
}

func (c *randomCounts) add(w *randomWorld) {
	n := w.o.counts
	c.steps += n.checks
	c.starts += n.starts
	c.waits += n.waits
	c.escalations += n.escalations
	c.canceled += n.canceled
	c.expired += n.expired
	c.failedFast += n.failedFast
	c.tooLarge += n.tooLarge
	c.heads += n.heads
	c.overages += len(w.o.overages)
	c.cycles += len(w.o.ratios) - 1
	c.sure += w.sure
}

func (c randomCounts) String() string {
	return fmt.Sprintf("steps %d, starts %d (%d after a wait), escalations %d, canceled %d, expired %d, failed fast %d, too large %d, "+
		"heads checked %d, overages %d, cycles of adaptation %d, sure predictions %d",
		c.steps, c.starts, c.waits, c.escalations, c.canceled, c.expired, c.failedFast, c.tooLarge, c.heads, c.overages, c.cycles, c.sure)
}

// A randomWorld is one limiter, its oracle, and everybody who calls it.
type randomWorld struct {
	t    *testing.T
	r    *rand.Rand // of the driver alone: jobs draw nothing, so that a seed does not depend on scheduling
	cfg  config
	l    *limiter
	o    *oracle
	all  sync.WaitGroup
	step int
	sure int // predictions that were certain
	logs bool

	mu      sync.Mutex
	held    []*randomHold
	cancels []func() // of all calls
}

// randomHold is a reservation in the driver's hands.
type randomHold struct {
	res *llmrate.Reservation[string]
	run *oracleRun
	j   *randomJob
}

// randomJob is what one call does.
type randomJob struct {
	*oracleJob
	kind  randomKind
	opts  []llmrate.RunOption
	plans []randomPlan // one for each attempt
}

type randomKind int

const (
	kindRun randomKind = iota
	kindDo
	kindAcquire     // and settle after a time
	kindAcquireHold // and let the driver settle
	kindTryAcquire
)

type randomEnd int

const (
	endOK randomEnd = iota
	endError
	endErrorWithUsage
	endReject
	endDelegate
	endPanic
	endGoexit
	endBadUsage
)

// randomPlan is one attempt: how long it takes and how it ends.
type randomPlan struct {
	takes time.Duration
	watch bool // ends early with its context
	end   randomEnd
	zero  bool
	parts [4]float64 // of the estimate: requests, input, cached, output
	extra int64      // tokens, where nothing was estimated
	none  bool       // says nothing about the requests
}

func newRandomWorld(t *testing.T, seed uint64, logs bool) *randomWorld {
	w := &randomWorld{t: t, r: rand.New(rand.NewPCG(seed, 0x6c6c6d72617465)), logs: logs}
	w.cfg = w.config()
	if w.r.IntN(4) == 0 { // not always in the first minute of the day
		time.Sleep(w.duration(day))
	}
	w.o = newOracle(t.Context(), w.cfg)
	w.cfg.OnEvent = w.o.event
	w.o.cfg.OnEvent = w.o.event
	w.logf("%+v", w.cfg)
	l, err := llmrate.New(t.Context(), w.cfg)
	require.NoError(t, err)
	w.l = l
	t.Cleanup(w.abandon)
	return w
}

// abandon ends everybody who is left when a seed has failed, so that the other seeds can go on.
func (w *randomWorld) abandon() {
	for _, cancel := range w.cancels {
		cancel()
	}
	for h := w.someHold(); h != nil; h = w.someHold() {
		h.res.Release()
	}
	synctest.Wait()
	for h := w.someHold(); h != nil; h = w.someHold() {
		h.res.Release()
	}
	w.all.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), day)
	defer cancel()
	_ = w.l.Close(ctx)
}

func (w *randomWorld) logf(format string, args ...any) {
	if w.logs {
		w.t.Logf("%s: %s", clock(time.Now().UnixNano()), fmt.Sprintf(format, args...))
	}
}

func (w *randomWorld) chance(p float64) bool { return w.r.Float64() < p }

func (w *randomWorld) between(low, high int64) int64 { return low + w.r.Int64N(high-low+1) }

// randomGrid: jobs come, end by themselves and are tired of waiting at multiples of this. Then any two waits end in the
// same instant or so far apart that the limiter, which treats deadlines within a millisecond as one, must tell them
// apart. Windows, contexts and buckets know no grid.
const randomGrid = 5 * time.Millisecond

// duration up to the longest, short ones as often as long ones.
func (w *randomWorld) duration(longest time.Duration) time.Duration {
	return (time.Duration(float64(longest)*math.Exp(-10*w.r.Float64())) + randomGrid).Truncate(randomGrid)
}

// sleepOnGrid sleeps for d and up to the next point of the grid.
func sleepOnGrid(ctx context.Context, d time.Duration) error {
	if off := time.Duration(time.Now().Add(d).UnixNano()) % randomGrid; off > 0 {
		d += randomGrid - off
	}
	return sleep(ctx, d)
}

func randomOf[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

func (w *randomWorld) config() config {
	scale := randomOf(w.r, int64(20), 1_000, 30_000, 1_000_000)
	cfg := config{JobTypes: jobTypes{}, InstanceID: "i"}
	for i := range w.between(1, 3) {
		cfg.Models = append(cfg.Models, w.model(string(rune('A'+i)), scale))
	}
	memory := w.chance(0.35)
	if memory {
		cfg.Memory.Limit = w.between(10, 100) * mib
		if w.chance(0.5) {
			cfg.Memory.Share = 1
		}
	}
	left := 10
	for i := range w.between(1, 4) {
		jt := w.jobType(cfg.Models, scale)
		if w.chance(0.5) && left > 1 {
			tenths := w.between(1, int64(left)-1)
			jt.Ratio = float64(tenths) / 10
			left -= int(tenths)
		}
		if memory && w.chance(0.7) {
			jt.EstimatedMemory = w.between(1, cfg.Memory.Limit*randomOf(w.r, int64(1), 1, 2, 11)/10+1)
		}
		cfg.JobTypes[string(rune('a'+i))] = jt
	}
	if w.chance(0.3) {
		cfg.Ratios.Settlements = int(w.between(1, 30))
	}
	if w.chance(0.6) { // while somebody waits for his share, there is a cycle in each
		cfg.Ratios.Interval = randomOf(w.r, 3*time.Second, time.Minute, time.Hour) + w.duration(time.Minute)
	}
	return cfg
}

func (w *randomWorld) model(id string, scale int64) modelConfig {
	m := modelConfig{ID: id, Pricing: llmrate.Pricing{Input: w.r.Float64(), Cached: w.r.Float64(), Output: w.r.Float64()}}
	l := &m.Limits
	refill := func() llmrate.Refill {
		switch w.r.IntN(9) {
		case 0, 1:
			return llmrate.Continuous
		case 2, 3:
			return llmrate.Continuous.WithBurst(w.duration(2 * time.Minute))
		}
		return llmrate.FixedWindow
	}
	l.Refill = refill()
	for range w.between(1, 4) {
		switch w.r.IntN(9) {
		case 0:
			l.RequestsPerMinute = w.between(1, 30)
		case 1:
			l.RequestsPerDay = w.between(10, 200)
		case 2, 3:
			l.TokensPerMinute = w.between(scale, 10*scale)
		case 4:
			l.TokensPerDay = w.between(20*scale, 100*scale)
		case 5:
			l.InputTokensPerMinute = w.between(scale, 6*scale)
		case 6:
			l.OutputTokensPerMinute = w.between(scale, 6*scale)
		case 7:
			l.MaxConcurrent = w.between(1, 8)
		case 8:
			c := llmrate.CustomLimit{Resource: randomOf(w.r, oracleResources[:]...), Refill: refill()}
			c.Per = randomOf(w.r, 10*time.Second, time.Second, 7*time.Minute, time.Hour, 90*time.Second+1, 7777*time.Millisecond)
			c.Max = w.between(scale, 5*scale)
			if c.Resource == llmrate.Requests {
				c.Max = w.between(1, 20)
			}
			l.Custom = append(l.Custom, c)
		}
	}
	if w.chance(0.03) {
		l.TokensPerDay = llmrate.MaxAmount
	}
	if w.chance(0.25) {
		m.MaxCapacity = int(w.between(1, 10))
	}
	if w.chance(0.25) {
		m.MinCapacity = int(w.between(1, 4))
		if m.MaxCapacity > 0 {
			m.MinCapacity = min(m.MinCapacity, m.MaxCapacity)
		}
	}
	if w.chance(0.15) {
		m.CountTokens = func(u usage) int64 { return u.InputTokens + 2*u.OutputTokens }
	}
	return m
}

func (w *randomWorld) jobType(models []modelConfig, scale int64) jobType {
	var jt jobType
	size := max(1, scale/randomOf(w.r, int64(1), 2, 5, 20))
	switch w.r.IntN(8) {
	case 0: // nothing is known
	case 1:
		jt.EstimatedInputTokens, jt.EstimatedOutputTokens = w.between(0, size), w.between(0, size)
	case 2:
		jt.EstimatedTokens = w.between(1, size)
		jt.EstimatedInputTokens = w.between(0, jt.EstimatedTokens)
	case 3:
		jt.EstimatedInputTokens, jt.EstimatedOutputTokens = w.between(0, size), w.between(0, size)
		jt.EstimatedTokens = jt.EstimatedInputTokens + jt.EstimatedOutputTokens + w.between(1, size)
	default:
		jt.EstimatedTokens = w.between(1, size)
	}
	jt.EstimatedRequests = randomOf(w.r, int64(0), 0, 1, 2, 3)
	jt.FixedRatio = w.chance(0.4)
	jt.MaxWait = maxWait{}
	for _, m := range models {
		if d, ok := w.wait(); ok {
			jt.MaxWait[m.ID] = d
		}
	}
	return jt
}

// wait is a longest wait, or false for the default.
func (w *randomWorld) wait() (time.Duration, bool) {
	switch w.r.IntN(10) {
	case 0, 1:
		return 0, false
	case 2:
		return 0, true
	case 3:
		return math.MaxInt64, true
	case 4:
		return time.Duration(w.between(1, 4)) * minute, true
	case 5:
		return time.Duration(w.between(1, 3)) * time.Hour, true
	}
	return w.duration(3 * time.Minute), true
}

// draw makes a job with all that it will do.
func (w *randomWorld) draw(kinds ...randomKind) *randomJob {
	o := w.o
	j := &randomJob{oracleJob: &oracleJob{step: w.step, typ: randomOf(w.r, o.types...), models: o.models}}
	j.kind = randomOf(w.r, kinds...)
	j.id = fmt.Sprintf("j%d.%d", w.step, len(w.cancels))
	j.opts = append(j.opts, llmrate.WithJobID(j.id))
	j.noWait = j.kind == kindTryAcquire
	if len(o.models) > 1 && w.chance(0.2) {
		j.models = nil
		var names []string
		for _, i := range w.r.Perm(len(o.models))[:w.between(1, int64(len(o.models)))] {
			j.models = append(j.models, o.models[i])
			names = append(names, o.models[i].id)
		}
		j.opts = append(j.opts, llmrate.WithModels(names...))
	}
	j.estimate, j.need = j.typ.estimate, j.typ.need
	if w.chance(0.25) {
		base := j.estimate.InputTokens + j.estimate.OutputTokens
		j.estimate = usage{
			Requests: w.between(0, 3), InputTokens: w.between(0, 2*base), CachedTokens: w.between(0, base/2), OutputTokens: w.between(0, base),
		}
		j.opts = append(j.opts, llmrate.WithEstimate(j.estimate))
		j.estimate.Requests = cmp.Or(j.estimate.Requests, j.typ.estimate.Requests)
		j.need = nil
		for _, m := range o.models {
			j.need = append(j.need, m.amounts(j.estimate))
		}
	}
	if w.chance(0.25) {
		if d, ok := w.wait(); ok {
			j.maxWait = &d
			j.opts = append(j.opts, llmrate.WithMaxWait(d))
		}
	}
	var cancel func()
	switch w.r.IntN(10) {
	case 0, 1:
		j.ctx, cancel = context.WithTimeout(w.o.ctx, w.duration(3*time.Minute)+time.Duration(w.between(-2, 0)))
	case 2, 3, 4:
		ctx, cancelCause := context.WithCancelCause(w.o.ctx)
		cause := fmt.Errorf("%s was cancelled", j.id)
		j.ctx, cancel = ctx, func() { cancelCause(cause) }
	default:
		j.ctx, cancel = context.WithCancel(w.o.ctx)
	}
	if w.chance(0.01) {
		cancel()
	}
	w.cancels = append(w.cancels, cancel)
	longest := randomOf(w.r, time.Millisecond, time.Second, 20*time.Second, 3*time.Minute)
	for range w.cfg.Models {
		j.plans = append(j.plans, w.plan(longest))
	}
	return j
}

func (w *randomWorld) plan(longest time.Duration) randomPlan {
	p := randomPlan{watch: w.chance(0.5), none: w.chance(0.3), zero: w.chance(0.08)}
	if w.chance(0.9) {
		p.takes = w.duration(longest)
	}
	switch n := w.r.IntN(100); {
	case n < 50:
		p.end = endOK
	case n < 60:
		p.end = endError
	case n < 66:
		p.end = endErrorWithUsage
	case n < 74:
		p.end = endReject
	case n < 88:
		p.end = endDelegate
	case n < 92:
		p.end = endPanic
	case n < 96:
		p.end = endGoexit
	default:
		p.end = endBadUsage
	}
	over := w.chance(0.25)
	for i := range p.parts {
		switch w.r.IntN(4) {
		case 0:
			p.parts[i] = 1
		default:
			p.parts[i] = w.r.Float64()
		}
		if over && w.chance(0.5) {
			p.parts[i] = 1 + w.r.Float64()
		}
	}
	if over {
		p.extra = w.between(0, 50)
	}
	return p
}

// used is the usage that a plan comes to.
func (p *randomPlan) used(estimate usage) usage {
	if p.zero {
		return usage{}
	}
	part := func(i int, n int64) int64 { return int64(math.Round(p.parts[i] * float64(n))) }
	u := usage{Requests: part(0, estimate.Requests), InputTokens: part(1, estimate.InputTokens), OutputTokens: part(3, estimate.OutputTokens)}
	if p.parts[2] < 0.3 { // a part of the input was cached
		u.CachedTokens = int64(p.parts[2] * float64(u.InputTokens))
		u.InputTokens -= u.CachedTokens
	}
	u.OutputTokens += p.extra
	if p.none {
		u.Requests = 0
	}
	return u
}

// end ends a run as planned. It tells the oracle and then the caller what the function is to return.
func (w *randomWorld) end(j *randomJob, run *oracleRun, p *randomPlan, canceled error) (u usage, err, want error) {
	u = p.used(j.estimate)
	cause := fmt.Errorf("%s has failed on %s", j.id, run.model.id)
	end := p.end
	if canceled != nil {
		end, cause = endError, canceled
	}
	w.logf("%s ends on %s: %d %+v", j.id, run.model.id, end, u)
	switch end {
	case endOK:
		w.o.ending(run, u, true, false)
		return u, nil, nil
	case endErrorWithUsage:
		w.o.ending(run, u, u != usage{}, false)
		return u, cause, cause
	case endReject:
		w.o.ending(run, u, true, false)
		return usage{}, llmrate.Reject(cause, u), cause
	case endDelegate:
		j.causes = append(j.causes, cause)
		w.o.ending(run, u, true, true)
		return usage{}, fmt.Errorf("wrapped: %w", llmrate.Delegate(cause, u)), errDelegated
	case endBadUsage:
		w.o.ending(run, usage{}, false, false)
		return usage{Requests: 1, OutputTokens: -1}, nil, errBadUsage
	}
	w.o.ending(run, usage{}, false, false)
	return usage{}, cause, cause
}

var errBadUsage = errors.New("bad usage")

// call makes the call and sees it through.
func (w *randomWorld) call(j *randomJob) {
	defer w.all.Done()
	switch j.kind {
	case kindRun, kindDo:
		w.callRun(j)
	case kindAcquire, kindAcquireHold:
		res, err := w.l.Acquire(j.ctx, j.typ.name, j.opts...)
		w.reserved(j, res, err)
	case kindTryAcquire:
		res, err := w.l.TryAcquire(j.ctx, j.typ.name, j.opts...)
		w.reserved(j, res, err)
	}
}

func (w *randomWorld) callRun(j *randomJob) {
	var want error
	run := func(ctx context.Context, a llmrate.Attempt[string]) (usage, error) {
		run := w.o.started(j.oracleJob, a.Model, a.Estimate)
		w.logf("%s starts on %s", j.id, a.Model)
		if a.JobID != j.id || a.Number != len(j.attempts) {
			w.t.Errorf("attempt %d of %s is %+v", len(j.attempts), j.id, a)
		}
		p := &j.plans[a.Number-1]
		var canceled error
		if p.watch {
			canceled = sleepOnGrid(ctx, p.takes)
		} else {
			_ = sleepOnGrid(context.Background(), p.takes)
		}
		u, err, wanted := w.end(j, run, p, canceled)
		want = wanted
		if canceled == nil && p.end == endPanic {
			panic(j.id)
		}
		if canceled == nil && p.end == endGoexit {
			runtime.Goexit()
		}
		return u, err
	}
	var res llmrate.Result[string]
	var err error
	returned := false
	defer func() {
		panicked := recover()
		if last := j.attempts; !returned {
			end := j.plans[max(0, len(last)-1)].end
			if len(last) == 0 || panicked == nil && end != endGoexit || panicked != nil && panicked != any(j.id) {
				w.t.Errorf("%s: the call ended with the panic %v", j.id, panicked)
			}
			w.o.over(j.oracleJob)
			return
		}
		if _, bad := errors.AsType[*llmrate.FieldError](err); bad && want == errBadUsage {
			want = err
		}
		w.logf("%s returns %v", j.id, err)
		w.o.checkResult(j.oracleJob, res)
		w.o.returned(j.oracleJob, want, err)
	}()
	if j.kind == kindRun {
		res, err = w.l.Run(j.ctx, j.typ.name, run, j.opts...)
	} else {
		var on string
		on, res, err = llmrate.Do(j.ctx, w.l, j.typ.name, func(ctx context.Context, a llmrate.Attempt[string]) (string, usage, error) {
			u, err := run(ctx, a)
			return a.Model, u, err
		}, j.opts...)
		if on != res.Model {
			w.t.Errorf("%s: Do returns the value of %q, and the model is %q", j.id, on, res.Model)
		}
	}
	returned = true
}

func (w *randomWorld) reserved(j *randomJob, res *llmrate.Reservation[string], err error) {
	if err != nil {
		w.logf("%s returns %v", j.id, err)
		w.o.returned(j.oracleJob, nil, err)
		return
	}
	run := w.o.started(j.oracleJob, res.Model(), res.Estimate())
	w.logf("%s has a reservation on %s", j.id, res.Model())
	h := &randomHold{res: res, run: run, j: j}
	if j.kind == kindAcquire {
		_ = sleepOnGrid(context.Background(), j.plans[0].takes)
		w.settle(h)
		return
	}
	w.mu.Lock()
	w.held = append(w.held, h)
	w.mu.Unlock()
}

// settle ends a reservation in one of many ways, and more than once.
func (w *randomWorld) settle(h *randomHold) {
	p := &h.j.plans[0]
	u := p.used(h.j.estimate)
	if p.end == endBadUsage {
		if _, ok := errors.AsType[*llmrate.FieldError](h.res.Settle(usage{InputTokens: llmrate.MaxAmount + 1})); !ok {
			w.t.Errorf("%s: a usage out of range is settled", h.j.id)
		}
	}
	w.logf("%s settles on %s: %d %+v", h.j.id, h.run.model.id, p.end, u)
	known := p.end != endError && p.end != endPanic
	w.o.ending(h.run, u, known, false)
	if known {
		if err := h.res.Settle(u); err != nil {
			w.t.Errorf("%s: %v", h.j.id, err)
		}
	} else {
		h.res.Release()
	}
	w.o.over(h.j.oracleJob)
	if p.watch {
		h.res.Release()
		if err := h.res.Settle(usage{OutputTokens: 1}); !errors.Is(err, llmrate.ErrSettled) {
			w.t.Errorf("%s: settled again: %v", h.j.id, err)
		}
	}
}

// launch makes calls, one after the other, and compares each with what must become of it.
func (w *randomWorld) launch(n int64) {
	for range n {
		w.step++
		j := w.draw(kindRun, kindRun, kindRun, kindDo, kindAcquire, kindAcquireHold, kindTryAcquire)
		st := w.l.Stats()
		p := w.o.predict(j.oracleJob, &st)
		if p.sure {
			w.sure++
		}
		w.o.mu.Lock()
		ratios := len(w.o.ratios)
		w.o.mu.Unlock()
		w.begin(j)
		w.rest()
		w.o.verify(p, j.oracleJob, ratios)
		w.o.report(w.t)
	}
}

// burst makes calls all at once.
func (w *randomWorld) burst(n int64) {
	w.step++
	jobs := make([]*randomJob, n)
	for i := range jobs {
		jobs[i] = w.draw(kindRun, kindDo, kindAcquire, kindTryAcquire)
	}
	for _, j := range jobs {
		w.begin(j)
	}
	w.rest()
}

// cancel ends the context of one of the last calls.
func (w *randomWorld) cancel() {
	if len(w.cancels) > 0 {
		i := max(0, len(w.cancels)-1-w.r.IntN(20))
		w.logf("cancel %d", i)
		w.cancels[i]()
	}
}

// tangle does many things in one instant, before anybody comes to rest.
func (w *randomWorld) tangle() {
	w.step++
	for range w.between(2, 12) {
		switch w.r.IntN(5) {
		case 0, 1:
			if h := w.someHold(); h != nil {
				w.settle(h)
			}
		case 2, 3:
			w.cancel()
		case 4:
			w.begin(w.draw(kindRun, kindAcquireHold, kindTryAcquire))
		}
	}
	w.rest()
}

func (w *randomWorld) begin(j *randomJob) {
	w.logf("%s calls %d: %s of %v on %d models, noWait %t, maxWait %v", j.id, j.kind, j.typ.name, j.need, len(j.models), j.noWait, j.maxWait)
	w.o.launch(j.oracleJob)
	w.all.Add(1)
	go w.call(j)
}

// rest lets all come to rest and checks everything.
func (w *randomWorld) rest() {
	synctest.Wait()
	w.o.check(w.l)
	w.o.report(w.t)
}

// sleep lets time pass, with a few stops on the way.
func (w *randomWorld) sleep(d time.Duration) {
	w.logf("sleep %s", d)
	for range w.r.IntN(4) {
		if d < 2 {
			break
		}
		stop := time.Duration(w.between(1, int64(d)))
		time.Sleep(stop)
		d -= stop
		w.rest()
	}
	_ = sleepOnGrid(context.Background(), d)
	w.rest()
}

// sleepToEdge sleeps to the edge of a window, or a nanosecond to one side of it, where jobs may end.
func (w *randomWorld) sleepToEdge(per time.Duration) {
	now := time.Now().UnixNano()
	edge := time.Duration((now/int64(per)+1)*int64(per)-now) + time.Duration(w.between(-1, 1))
	w.logf("sleep %s to an edge", edge)
	time.Sleep(edge)
	w.rest()
	w.settleSome(w.between(0, 3))
	w.sleep(0)
}

// settleSome ends some of the reservations in the driver's hands.
func (w *randomWorld) settleSome(n int64) {
	for ; n > 0; n-- {
		h := w.someHold()
		if h == nil {
			return
		}
		w.settle(h)
		w.rest()
	}
}

// someHold takes one of the reservations in the driver's hands.
func (w *randomWorld) someHold() *randomHold {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.held) == 0 {
		return nil
	}
	slices.SortFunc(w.held, func(a, b *randomHold) int { return cmp.Compare(a.j.id, b.j.id) })
	i := w.r.IntN(len(w.held))
	h := w.held[i]
	w.held = slices.Delete(w.held, i, i+1)
	return h
}

func (w *randomWorld) play() {
	eager := w.between(1, 4)
	for range w.between(20, 60) {
		switch n := w.r.IntN(100); {
		case n < 40:
			w.launch(w.between(1, 2*eager))
		case n < 48:
			w.burst(w.between(2, 8))
		case n < 58:
			w.sleep(w.duration(100 * time.Millisecond))
		case n < 70:
			w.sleep(w.duration(30 * time.Second))
		case n < 76:
			w.sleep(w.duration(3 * time.Minute))
		case n < 82:
			w.sleepToEdge(minute)
		case n < 83:
			w.sleepToEdge(day)
		case n < 84:
			w.sleep(w.duration(3 * day))
		case n < 86:
			w.sleepToEdge(randomOf(w.r, time.Second, 10*time.Second, 7777*time.Millisecond, time.Hour))
		case n < 91:
			w.cancel()
			w.rest()
		case n < 94:
			w.settleSome(1)
		case n < 98:
			w.tangle()
		default:
			st := w.l.Stats()
			w.o.checkAvailable(w.l, &st)
			w.o.report(w.t)
		}
	}
	switch w.r.IntN(3) {
	case 0:
		w.finish()
		w.close()
	case 1:
		w.close()
		w.finish()
	case 2: // no patience the first time
		w.closeImpatiently()
		w.finish()
		w.close()
	}
	w.all.Wait()
	w.rest()
	w.o.checkEnd(w.l)
	w.sleep(2 * day)
	w.o.checkEnd(w.l)
	w.o.report(w.t)
}

// finish settles everything and waits until the last job is through. Nobody may be left.
func (w *randomWorld) finish() {
	for i := 0; w.o.busy() > 0; i++ {
		if i == 120 {
			w.t.Fatalf("%d jobs are still there after weeks: %+v", w.o.busy(), w.l.Stats())
		}
		w.settleSome(math.MaxInt64)
		w.sleep(time.Second << min(i, 16)) // up to 18 hours
	}
}

func (w *randomWorld) close() {
	w.logf("close")
	w.o.close()
	done := make(chan error, 1)
	go func() { done <- w.l.Close(context.Background()) }()
	w.rest()
	w.launch(2)
	for h := w.someHold(); h != nil; h = w.someHold() {
		select {
		case err := <-done:
			w.t.Fatalf("Close returns %v while a reservation is held", err)
		default:
		}
		w.settle(h)
		w.rest()
	}
	err := <-done
	synctest.Wait()
	if err != nil || w.o.busy() > 0 {
		w.t.Fatalf("Close returns %v, %d jobs are left", err, w.o.busy())
	}
	if err := w.l.Close(context.Background()); err != nil {
		w.t.Fatalf("Close again: %v", err)
	}
}

// closeImpatiently closes with a context that ends before the jobs do.
func (w *randomWorld) closeImpatiently() {
	w.logf("close impatiently")
	w.o.close()
	ctx, cancel := context.WithTimeout(context.Background(), w.duration(time.Second))
	defer cancel()
	err := w.l.Close(ctx)
	w.rest()
	if err == nil && w.o.busy() > 0 || err != nil && !errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatalf("Close returns %v, %d jobs are left", err, w.o.busy())
	}
	w.launch(1)
}
