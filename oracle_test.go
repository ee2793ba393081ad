package llmrate_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/llmrate/llmrate"
)

// An oracle recounts from the outside what a limiter does. It sees only what a user sees: when a job's function starts
// and with which estimate, how it ends, when a call returns and with what. From that alone, and the configuration, it
// knows what must have been charged to every window, what every job type may have, who waits where since when and until
// when; and it checks the invariants of DESIGN.md, section 4, and what Stats says.
//
// Time is virtual, so points in time are compared for equality. Within one instant the order in which the limiter
// decided may differ from the order in which the oracle is told: it is told of a start after, and of an end before it
// happens. What is checked within an instant allows for that; everything is checked once more when all have come to
// rest.
type oracle struct {
	cfg    config
	ctx    context.Context // of the whole test
	models []*oracleModel
	types  []*oracleType // in order of name
	budget int64         // memory

	mu       sync.Mutex // jobs record from their own goroutines
	faults   []string
	jobs     []*oracleJob // that have not returned
	runs     [][]*oracleRun
	ratios   []oracleRatios // all that were ever in force, the first since the beginning
	starts   []*oracleStart // since the last check
	closed   bool
	closedAt int64
	overages map[llmrate.OverageEvent]int // expected less received
	counts   struct{ starts, ends, startEvents, endEvents, checks, waits, escalations, canceled, expired, failedFast, tooLarge, heads int }
}

type oracleModel struct {
	id                 string
	index              int
	dims               []oracleDim
	concurrent         int64
	minSlots, maxSlots int64
	count              func(usage) int64
	price              llmrate.Pricing
	running            int
	canceled           []int64 // when a job left the queue because its context ended: it may have been charged for an instant
}

type oracleDim struct {
	name     string
	resource int // index in oracleAmounts
	per      int64
	max      int64
	rate     int64 // 0: fixed
	stats    func(llmrate.ModelStats) llmrate.WindowStats
}

// oracleAmounts holds requests, tokens, input and output tokens.
type oracleAmounts [4]int64

var oracleResources = [4]llmrate.Resource{llmrate.Requests, llmrate.Tokens, llmrate.InputTokens, llmrate.OutputTokens}

type oracleType struct {
	name     string
	index    int
	cfg      jobType
	estimate usage
	need     []oracleAmounts // by model
	initial  float64
}

type oracleRatios struct {
	at     int64
	ratios []float64 // by type
}

// oracleJob is one call of Run, Do, Acquire or TryAcquire.
type oracleJob struct {
	id       string
	step     int
	typ      *oracleType
	models   []*oracleModel
	estimate usage
	need     []oracleAmounts // by model
	noWait   bool
	maxWait  *time.Duration
	ctx      context.Context

	launched int64
	next     int           // in models
	visit    *oracleVisit  // waits there, or runs after it
	run      *oracleRun    // the last
	ran      time.Duration // all runs
	running  bool
	attempts []*oracleRun
	causes   []error // of delegations
	done     bool
	err      error // what the call returned
}

// oracleVisit is a job's stay in the queue of one model.
type oracleVisit struct {
	job      *oracleJob
	model    *oracleModel
	at       int64
	step     int // of the launch if the job came here at once, or -1: tells who was first in one instant
	deadline int64
	left     int64 // 0 while it waits
}

// before reports whether v certainly came earlier than w.
func (v *oracleVisit) before(w *oracleVisit) bool {
	return v.at < w.at || v.at == w.at && v.step >= 0 && v.step < w.step
}

// oracleRun is one run of a job on one model.
type oracleRun struct {
	job        *oracleJob
	model      *oracleModel
	need       oracleAmounts
	start, end int64
	ended      bool
	known      bool
	used       oracleAmounts
	waited     time.Duration
}

// oracleStart is what a job type had when one more of its jobs started.
type oracleStart struct {
	run      *oracleRun
	visit    *oracleVisit
	used     []float64 // by dimension
	charged  []int64   // by dimension: the model's
	inFlight int
	held     int64 // memory
}

func newOracle(ctx context.Context, cfg config) *oracle {
	o := &oracle{cfg: cfg, ctx: ctx, runs: make([][]*oracleRun, len(cfg.Models)), overages: map[llmrate.OverageEvent]int{}}
	share := cfg.Memory.Share
	if share == 0 {
		share = 0.8
	}
	o.budget = int64(float64(cfg.Memory.Limit) * share)
	for i, m := range cfg.Models {
		om := &oracleModel{
			id: m.ID, index: i, concurrent: m.Limits.MaxConcurrent, count: m.CountTokens, price: m.Pricing,
			minSlots: int64(m.MinCapacity), maxSlots: int64(m.MaxCapacity),
		}
		add := func(name string, resource int, per time.Duration, limit int64, refill llmrate.Refill, stats func(llmrate.ModelStats) llmrate.WindowStats) {
			if limit == 0 {
				return
			}
			d := oracleDim{name: name, resource: resource, per: int64(per), max: limit, stats: stats}
			if refill != llmrate.FixedWindow {
				d.rate = limit
				if refill > 0 && time.Duration(refill) < per {
					d.max = max(1, int64(float64(limit)*float64(refill)/float64(per)+1e-9))
				}
			}
			om.dims = append(om.dims, d)
		}
		l := m.Limits
		daily := l.Refill
		if daily != llmrate.FixedWindow {
			daily = llmrate.Continuous
		}
		add("RPM", 0, minute, l.RequestsPerMinute, l.Refill, func(s llmrate.ModelStats) llmrate.WindowStats { return s.RequestsPerMinute })
		add("RPD", 0, day, l.RequestsPerDay, daily, func(s llmrate.ModelStats) llmrate.WindowStats { return s.RequestsPerDay })
		add("TPM", 1, minute, l.TokensPerMinute, l.Refill, func(s llmrate.ModelStats) llmrate.WindowStats { return s.TokensPerMinute })
		add("TPD", 1, day, l.TokensPerDay, daily, func(s llmrate.ModelStats) llmrate.WindowStats { return s.TokensPerDay })
		add("ITPM", 2, minute, l.InputTokensPerMinute, l.Refill, func(s llmrate.ModelStats) llmrate.WindowStats { return s.InputTokensPerMinute })
		add("OTPM", 3, minute, l.OutputTokensPerMinute, l.Refill, func(s llmrate.ModelStats) llmrate.WindowStats { return s.OutputTokensPerMinute })
		for k, c := range l.Custom {
			add(fmt.Sprintf("custom %d", k), slices.Index(oracleResources[:], c.Resource), c.Per, c.Max, c.Refill,
				func(s llmrate.ModelStats) llmrate.WindowStats { return s.Custom[k] })
		}
		o.models = append(o.models, om)
	}
	left, unset := 1.0, 0
	for _, name := range slices.Sorted(maps.Keys(cfg.JobTypes)) {
		t := &oracleType{name: name, index: len(o.types), cfg: cfg.JobTypes[name], initial: cfg.JobTypes[name].Ratio}
		left -= t.initial
		if t.initial == 0 {
			unset++
		}
		c := t.cfg
		t.estimate = usage{Requests: max(1, c.EstimatedRequests), InputTokens: c.EstimatedInputTokens, OutputTokens: c.EstimatedOutputTokens}
		unsplit := c.EstimatedInputTokens == 0 && c.EstimatedOutputTokens == 0
		switch {
		case unsplit:
			t.estimate.InputTokens = c.EstimatedTokens
		case c.EstimatedTokens > 0 && c.EstimatedOutputTokens == 0:
			t.estimate.OutputTokens = c.EstimatedTokens - c.EstimatedInputTokens
		case c.EstimatedTokens > 0 && c.EstimatedInputTokens == 0:
			t.estimate.InputTokens = c.EstimatedTokens - c.EstimatedOutputTokens
		}
		for _, m := range o.models {
			need := m.amounts(t.estimate)
			if c.EstimatedTokens > 0 {
				need[1] = c.EstimatedTokens
			}
			if unsplit {
				need[3] = c.EstimatedTokens // reserved in every token limit
			}
			t.need = append(t.need, need)
		}
		o.types = append(o.types, t)
	}
	first := oracleRatios{at: time.Now().UnixNano()}
	for _, t := range o.types {
		if t.initial == 0 {
			t.initial = left / float64(unset)
		}
		first.ratios = append(first.ratios, t.initial)
	}
	o.ratios = []oracleRatios{first}
	return o
}

// amounts is what a usage counts as.
func (m *oracleModel) amounts(u usage) oracleAmounts {
	tokens := u.InputTokens + u.CachedTokens + u.OutputTokens
	if m.count != nil {
		tokens = m.count(u)
	}
	return oracleAmounts{u.Requests, tokens, u.InputTokens, u.OutputTokens}
}

func (o *oracle) faultf(format string, args ...any) {
	if len(o.faults) < 20 {
		o.faults = append(o.faults, fmt.Sprintf("%s: %s", clock(time.Now().UnixNano()), fmt.Sprintf(format, args...)))
	}
}

// clock shows a point in virtual time as the time since the beginning.
func clock(at int64) string { return time.Duration(at - midnight.UnixNano()).String() }

// report fails the test if anything was found.
func (o *oracle) report(t *testing.T) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.faults) > 0 {
		t.Fatal(strings.Join(o.faults, "\n"))
	}
}

// event is the limiter's Config.OnEvent. The oracle needs it only for the moments at which ratios change.
func (o *oracle) event(_ context.Context, e llmrate.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch e := e.(type) {
	case llmrate.RatiosEvent:
		r := oracleRatios{at: time.Now().UnixNano()}
		for _, t := range o.types {
			r.ratios = append(r.ratios, e.Ratios[t.name])
		}
		o.ratios = append(o.ratios, r)
	case llmrate.EscalatedEvent:
		o.movedOn(e)
	case llmrate.OverageEvent:
		o.overages[e]--
	case llmrate.StartedEvent:
		o.counts.startEvents++
	case llmrate.EndedEvent:
		o.counts.endEvents++
	}
}

// launch records a call that is about to be made.
func (o *oracle) launch(j *oracleJob) {
	o.mu.Lock()
	defer o.mu.Unlock()
	j.launched = time.Now().UnixNano()
	o.jobs = append(o.jobs, j)
	if j.ctx.Err() == nil && !o.closed {
		o.visitNext(j, j.launched)
	}
}

// tooLarge reports whether the job could not even run alone.
func (o *oracle) tooLarge(j *oracleJob, m *oracleModel) bool {
	return o.neverFits(m, j.need[m.index], j.typ.cfg.EstimatedMemory)
}

func (o *oracle) neverFits(m *oracleModel, need oracleAmounts, memory int64) bool {
	for i := range m.dims {
		if need[m.dims[i].resource] > m.dims[i].max {
			return true
		}
	}
	return memory > 0 && memory > o.budget
}

// wait is how long the job waits for m if it comes there at the given time.
func (o *oracle) wait(j *oracleJob, m *oracleModel, at int64) int64 {
	if j.noWait {
		return 0
	}
	if j.maxWait != nil {
		return int64(*j.maxWait)
	}
	if d, ok := j.typ.cfg.MaxWait[m.id]; ok {
		return int64(d)
	}
	return int64(minute) - at%int64(minute) + int64(5*time.Second)
}

// visitNext brings a job to its next model that it may fit.
func (o *oracle) visitNext(j *oracleJob, at int64) {
	j.visit = nil
	for j.next < len(j.models) {
		m := j.models[j.next]
		j.next++
		if o.tooLarge(j, m) {
			continue
		}
		v := &oracleVisit{job: j, model: m, at: at, step: -1}
		if at == j.launched && len(j.attempts) == 0 {
			v.step = j.step
		}
		v.deadline = at + o.wait(j, m, at)
		if v.deadline < at {
			v.deadline = math.MaxInt64
		}
		j.visit = v
		return
	}
}

// moveOn takes a waiting job on where its waits have ended. On its last nanosecond it may be on either model, unless
// all have come to rest.
func (o *oracle) moveOn(j *oracleJob, now int64, atRest bool) {
	for !j.running && j.visit != nil && (j.visit.deadline < now || atRest && j.visit.deadline == now) {
		o.expire(j)
	}
}

// movedOn takes a job on that did not wait for a model at all, which is right only if the end of its context would come
// before that of the wait.
func (o *oracle) movedOn(e llmrate.EscalatedEvent) {
	now := time.Now().UnixNano()
	for _, j := range o.jobs {
		if j.id != e.JobID || j.done || j.running || e.Delegated {
			continue
		}
		left := slices.IndexFunc(j.models, func(m *oracleModel) bool { return m.id == e.Model })
		for j.visit != nil && slices.Index(j.models, j.visit.model) < left && j.visit.deadline == now {
			o.expire(j)
		}
		v := j.visit
		if v == nil || v.model.id != e.Model || v.deadline <= now {
			continue
		}
		if deadline, has := j.ctx.Deadline(); !has || v.at != now || v.deadline < deadline.UnixNano() {
			o.faultf("%s leaves %s, where it may wait until %s", j.id, e.Model, clock(v.deadline))
		}
		v.left = now
		v.model.canceled = append(v.model.canceled, now)
		o.counts.escalations++
		o.visitNext(j, now)
	}
}

func (o *oracle) expire(j *oracleJob) {
	v := j.visit
	v.left = v.deadline
	if v.deadline > v.at {
		o.counts.expired++
	}
	o.visitNext(j, v.deadline)
	if j.visit != nil {
		o.counts.escalations++
	}
}

// started records that a job runs on a model, and checks whatever must hold at that moment.
func (o *oracle) started(j *oracleJob, model string, estimate usage) *oracleRun {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now().UnixNano()
	o.counts.starts++
	m := o.models[slices.IndexFunc(o.models, func(m *oracleModel) bool { return m.id == model })]
	o.moveOn(j, now, false)
	for j.visit != nil && j.visit.model != m && j.visit.deadline == now {
		o.expire(j)
	}
	run := &oracleRun{job: j, model: m, need: j.need[m.index], start: now}
	v := j.visit
	switch {
	case o.closed && now > o.closedAt:
		o.faultf("%s starts on %s after Close", j.id, m.id)
	case j.running || j.done:
		o.faultf("%s starts on %s while it runs or is over", j.id, m.id)
	case v == nil:
		o.faultf("%s starts on %s, where it has no business any more", j.id, m.id)
	case v.model != m:
		o.faultf("%s starts on %s out of turn: it waits for %s until %s", j.id, m.id, v.model.id, clock(v.deadline))
	default:
		run.waited = time.Duration(now - v.at)
		v.left = now
		if run.waited > 0 {
			o.counts.waits++
		}
	}
	if estimate != j.estimate {
		o.faultf("%s has an estimate of %+v, want %+v", j.id, estimate, j.estimate)
	}

	// Safety: there was room, in every window and bucket, beside all who run or have run. What others have used beyond
	// their estimate this instant may have come later.
	s := &oracleStart{run: run, visit: v, used: make([]float64, len(m.dims)), charged: make([]int64, len(m.dims))}
	for i := range m.dims {
		d := &m.dims[i]
		n := run.need[d.resource]
		if d.rate == 0 {
			if charged := o.charged(m, d, nil, now, false); charged+n > d.max {
				o.faultf("%s starts on %s with %d %s where %d of %d are charged", j.id, m.id, n, d.name, charged, d.max)
			}
			s.used[i] = float64(o.charged(m, d, j.typ, now, false))
			s.charged[i] = o.charged(m, d, nil, now, true)
			continue
		}
		level, _ := o.level(m, d, nil, now, false)
		if level+float64(n) > float64(d.max)+tolerance(d) {
			o.faultf("%s starts on %s with %d %s where the bucket of %d lacks %g", j.id, m.id, n, d.name, d.max, level)
		}
		s.used[i], _ = o.level(m, d, j.typ, now, false)
	}
	held := int64(0)
	for _, mm := range o.models {
		for _, r := range o.runs[mm.index] {
			if r.ended {
				continue
			}
			held += r.job.typ.cfg.EstimatedMemory
			if r.job.typ == j.typ && r.start < now { // what a type may hold differs between models: those of this instant may have come later
				s.held += r.job.typ.cfg.EstimatedMemory
			}
			if r.job.typ == j.typ && r.model == m {
				s.inFlight++
			}
		}
	}
	m.running++
	if m.concurrent > 0 && int64(m.running) > m.concurrent {
		o.faultf("%s is number %d on %s, which allows %d", j.id, m.running, m.id, m.concurrent)
	}
	if n := j.typ.cfg.EstimatedMemory; n > 0 && held+n > o.budget {
		o.faultf("%s starts with %d bytes where %d of %d are held", j.id, n, held, o.budget)
	}
	j.run, j.running = run, true
	j.attempts = append(j.attempts, run)
	o.runs[m.index] = append(o.runs[m.index], run)
	o.starts = append(o.starts, s)
	return run
}

// ending records that a run is about to be settled: with used if that is known. delegated sends the job on.
func (o *oracle) ending(run *oracleRun, used usage, known, delegated bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now().UnixNano()
	o.counts.ends++
	run.end, run.ended, run.known = now, true, known
	m, j := run.model, run.job
	m.running--
	j.running = false
	j.visit = nil
	j.ran += time.Duration(run.end - run.start)
	if known {
		if used.Requests == 0 && used != (usage{}) {
			used.Requests = j.estimate.Requests
		}
		run.used = m.amounts(used)
		for r, estimated := range run.need {
			limited := slices.ContainsFunc(m.dims, func(d oracleDim) bool { return d.resource == r })
			if actual := run.used[r]; limited && estimated > 0 && actual > estimated {
				o.overages[llmrate.OverageEvent{
					Model: m.id, JobType: j.typ.name, JobID: j.id, Resource: string(oracleResources[r]),
					Estimated: estimated, Actual: actual, Excess: actual - estimated,
				}]++
			}
		}
	}
	if delegated && !o.closed {
		o.visitNext(j, now)
	}
}

// charged recounts a fixed window: what all jobs, or those of one type, have charged to the one that is open now. With
// late, what was used beyond an estimate this very instant counts, too.
func (o *oracle) charged(m *oracleModel, d *oracleDim, t *oracleType, now int64, late bool) (sum int64) {
	open := now / d.per
	for _, r := range o.runs[m.index] {
		if t != nil && r.job.typ != t {
			continue
		}
		n, excess := r.need[d.resource], int64(0)
		first, last := r.start/d.per, open
		if r.ended && r.known {
			last = r.end / d.per
			if used := r.used[d.resource]; used > n {
				excess = used - n
			} else if first == last {
				n = used // a refund reaches only the window that was charged
			}
		}
		if first == open {
			sum += n
		}
		if last == open && (late || r.end < now) {
			sum += excess
		}
	}
	return sum
}

// level recounts a bucket, or a job type's part of one: what it lacks now. Every run counts at the time of its start,
// with its estimate while it runs and with what it used, up to the estimate, afterwards. What it used beyond that counts
// from its end.
func (o *oracle) level(m *oracleModel, d *oracleDim, t *oracleType, now int64, late bool) (level float64, since oracleSince) {
	type moment struct {
		at int64
		n  int64
	}
	var charges []moment
	for _, r := range o.runs[m.index] {
		if t != nil && r.job.typ != t {
			continue
		}
		n := r.need[d.resource]
		if r.ended && r.known {
			used := r.used[d.resource]
			if used > n && (late || r.end < now) {
				charges = append(charges, moment{r.end, used - n})
			}
			n = min(n, used)
			charges = append(charges, moment{r.end, 0})
		}
		charges = append(charges, moment{r.start, n})
	}
	slices.SortStableFunc(charges, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	at := o.ratios[0].at
	drain := func(to int64, share float64) {
		level -= float64(to-at) * float64(d.rate) / float64(d.per) * share
		at = to
		if level < 0 {
			since.refilled -= level
			level = 0
		}
	}
	ratio := 0
	drainTo := func(to int64) {
		if t == nil || len(o.types) == 1 {
			drain(to, 1)
			return
		}
		for ; ratio+1 < len(o.ratios) && o.ratios[ratio+1].at <= to; ratio++ {
			drain(o.ratios[ratio+1].at, o.ratios[ratio].ratios[t.index])
		}
		drain(to, o.ratios[ratio].ratios[t.index])
	}
	for _, c := range charges {
		drainTo(c.at)
		if level == 0 {
			since.full, since.charges = c.at, 0
		}
		since.refilled = 0
		if c.n > 0 {
			level += float64(c.n)
			since.charges++
		}
	}
	drainTo(now)
	return level, since
}

// oracleSince says more about a bucket.
type oracleSince struct {
	full     int64   // when it was full for the last time
	charges  int     // how many charges there were since
	refilled float64 // how much more it could have refilled since anything happened to it, had it not been full again
}

// tolerance is what the arithmetic of level may be off.
func tolerance(d *oracleDim) float64 { return 1e-6 + 1e-12*float64(d.max) }

// crowded reports whether more charges are open in a bucket than it is sure to remember one by one, so that refunds may
// be smaller than they could be.
func (o *oracle) crowded(m *oracleModel, d *oracleDim, now int64) bool {
	level, since := o.level(m, d, nil, now, true)
	n := since.charges
	for _, at := range m.canceled {
		if at >= since.full {
			n++
		}
	}
	return level > 0 && n > 28
}

// binds reports whether shares can bind before the model does.
func (o *oracle) binds(m *oracleModel) bool { return len(o.types) > 1 || m.maxSlots > 0 }

func (o *oracle) ratio(r []float64, t *oracleType) float64 {
	if len(o.types) == 1 {
		return 1
	}
	return r[t.index]
}

// bounded applies MinCapacity and MaxCapacity to a budget.
func (m *oracleModel) bounded(budget float64, perJob int64) float64 {
	if perJob > 0 && m.minSlots > 0 {
		budget = max(budget, float64(m.minSlots)*float64(perJob))
	}
	if perJob > 0 && m.maxSlots > 0 {
		budget = min(budget, float64(m.maxSlots)*float64(perJob))
	}
	return budget
}

// dimBudget is how much of a dimension a job type may have charged, given what the model has.
func (o *oracle) dimBudget(m *oracleModel, d *oracleDim, t *oracleType, r []float64, charged int64) float64 {
	return m.bounded(o.ratio(r, t)*float64(d.max), t.need[m.index][d.resource])
}

func (o *oracle) flightBudget(m *oracleModel, t *oracleType, r []float64) float64 {
	budget := math.Inf(1)
	if m.concurrent > 0 {
		budget = o.ratio(r, t) * float64(m.concurrent)
	}
	return m.bounded(budget, 1)
}

func (o *oracle) memoryPart(m *oracleModel, t *oracleType, r []float64) float64 {
	return m.bounded(o.ratio(r, t)*float64(o.budget), t.cfg.EstimatedMemory)
}

// An answer is yes or no where the contract decides, and unsure where it leaves room.
type answer int

const (
	no answer = iota
	unsure
	yes
)

func (a answer) String() string { return [...]string{"no", "unsure", "yes"}[a] }

// within compares what is wanted with a budget, with DESIGN 3.8's tolerance for float error.
func (o *oracle) within(wanted, budget float64) answer {
	switch {
	case wanted <= budget*(1+0.5e-9):
		return yes
	case wanted > budget*(1+2e-9):
		return no
	}
	return unsure
}

// shareRoom reports whether a job type's part of a bucket has room for n, given its level.
func (o *oracle) shareRoom(d *oracleDim, level, refilled float64, n int64, budget float64) answer {
	slack := 0.01 + 1e-6*float64(d.max) // the part's rate is rounded
	switch {
	case refilled > 1+slack:
		return yes // nothing charged
	case level+float64(n)+1+slack <= math.Floor(budget):
		return yes // a unit less, because refunds are in whole units
	case level > slack && level+float64(n) > budget+slack:
		return no
	}
	return unsure
}

// checkStarts checks what has to wait until all have come to rest: ratios may have changed in the same instant.
func (o *oracle) checkStarts(now int64, waiting map[*oracleModel]map[*oracleType][]*oracleVisit) {
	for _, s := range o.starts {
		m, t, n := s.run.model, s.run.job.typ, s.run.need
		force := o.inForce(s.run.start)
		allowed := func(ok func(r []float64) bool) bool { return slices.ContainsFunc(force, ok) }
		for i := range m.dims {
			d := &m.dims[i]
			want := n[d.resource]
			if want == 0 || !o.binds(m) || s.used[i] == 0 {
				continue
			}
			if !allowed(func(r []float64) bool {
				budget := o.dimBudget(m, d, t, r, s.charged[i])
				if d.rate == 0 {
					return o.within(s.used[i]+float64(want), budget) != no
				}
				return o.shareRoom(d, s.used[i], 0, want, budget) != no
			}) {
				o.faultf("%s started on %s at %s with %d %s beyond the share of %s, which had charged %g; ratios %v",
					s.run.job.id, m.id, clock(s.run.start), want, d.name, t.name, s.used[i], force)
			}
		}
		if s.inFlight > 0 && o.binds(m) && !allowed(func(r []float64) bool {
			return float64(s.inFlight+1) <= o.flightBudget(m, t, r)+1e-8
		}) {
			o.faultf("%s started on %s at %s as number %d of %s, beyond its share of the concurrency; ratios %v",
				s.run.job.id, m.id, clock(s.run.start), s.inFlight+1, t.name, force)
		}
		if need := t.cfg.EstimatedMemory; need > 0 && s.held > 0 && !allowed(func(r []float64) bool {
			return o.within(float64(s.held+need), o.memoryPart(m, t, r)) != no
		}) {
			o.faultf("%s started on %s at %s with %d bytes beyond the part of %s, which held %d; ratios %v",
				s.run.job.id, m.id, clock(s.run.start), need, t.name, s.held, force)
		}
		// First come, first served.
		for _, v := range waiting[m][t] {
			if s.visit != nil && v.before(s.visit) {
				o.faultf("%s, on %s since %s, started at %s before %s, there since %s and still waiting",
					s.run.job.id, m.id, clock(s.visit.at), clock(s.run.start), v.job.id, clock(v.at))
			}
		}
		for _, other := range o.starts {
			if v := other.visit; v != nil && s.visit != nil && other.run.model == m && other.run.job.typ == t &&
				v.before(s.visit) && other.run.start > s.run.start {
				o.faultf("%s, on %s since %s, started at %s before %s, there since %s and started at %s",
					s.run.job.id, m.id, clock(s.visit.at), clock(s.run.start), other.run.job.id, clock(v.at), clock(other.run.start))
			}
		}
	}
	o.starts = o.starts[:0]
}

// inForce lists the ratios that were in force at some moment of the instant.
func (o *oracle) inForce(at int64) (r [][]float64) {
	for i := len(o.ratios) - 1; i >= 0; i-- {
		r = append(r, o.ratios[i].ratios)
		if o.ratios[i].at < at {
			break
		}
	}
	return r
}

// room reports whether every gate of a model has room for a job of the type, when all have come to rest. Only what has
// been checked is taken from Stats.
func (o *oracle) room(m *oracleModel, t *oracleType, need oracleAmounts, st *llmrate.Stats[string], now int64) (answer, string) {
	result, reason := o.roomBut(m, t, need, st, now)
	if n := t.cfg.EstimatedMemory; n > 0 && result != no {
		if a, why := o.memoryRoom(m, t, st, now); a < result {
			return a, why
		}
	}
	return result, reason
}

func (o *oracle) memoryRoom(m *oracleModel, t *oracleType, st *llmrate.Stats[string], now int64) (answer, string) {
	n := t.cfg.EstimatedMemory
	held, used := int64(0), int64(0)
	for _, rs := range o.runs {
		for _, r := range rs {
			if !r.ended {
				used += r.job.typ.cfg.EstimatedMemory
				if r.job.typ == t {
					held += n
				}
			}
		}
	}
	if n > o.budget-used {
		return no, "memory"
	}
	result := yes
	if held > 0 {
		result = o.within(float64(held+n), o.memoryPart(m, t, o.ratios[len(o.ratios)-1].ratios))
	}
	// What comes free is kept for a job that has waited long for nothing but memory.
	for _, j := range o.jobs {
		if v := j.visit; v != nil && !j.running && j.typ.cfg.EstimatedMemory > o.budget-used && now-v.at >= int64(minute) {
			if others, _ := o.roomBut(v.model, j.typ, j.need[v.model.index], st, now); others != no {
				result = min(result, unsure)
			}
		}
	}
	return result, "memory"
}

// roomBut is room without the memory.
func (o *oracle) roomBut(m *oracleModel, t *oracleType, need oracleAmounts, st *llmrate.Stats[string], now int64) (result answer, reason string) {
	result = yes
	gate := func(a answer, format string, args ...any) {
		if a < result {
			result, reason = a, fmt.Sprintf(format, args...)
		}
	}
	r := o.ratios[len(o.ratios)-1].ratios
	for i := range m.dims {
		d := &m.dims[i]
		n := need[d.resource]
		window := d.stats(st.Models[m.id])
		if window.Used+n > window.Limit { // with a debt nothing starts, even if it reserves nothing
			gate(no, "%s %d of %d used", d.name, window.Used, window.Limit)
		}
		if n > 0 && d.rate > 0 && o.keptFor(m, t, d, st, now) {
			gate(unsure, "%s kept for another", d.name)
		}
		if n == 0 || !o.binds(m) {
			continue
		}
		budget := o.dimBudget(m, d, t, r, window.Used)
		if d.rate == 0 {
			if used := o.charged(m, d, t, now, true); used > 0 {
				gate(o.within(float64(used+n), budget), "share of %s: %d of %g used", d.name, used, budget)
			}
			continue
		}
		level, since := o.level(m, d, t, now, true)
		a := o.shareRoom(d, level, since.refilled, n, budget)
		if o.crowded(m, d, now) {
			a = min(a, unsure)
		}
		gate(a, "share of %s: %g of %g used", d.name, level, budget)
	}
	if m.concurrent > 0 && int64(m.running) >= m.concurrent {
		gate(no, "concurrency")
	}
	inFlight := 0
	for _, run := range o.runs[m.index] {
		if !run.ended && run.job.typ == t {
			inFlight++
		}
	}
	if inFlight > 0 && o.binds(m) {
		budget := o.flightBudget(m, t, r)
		switch wanted := float64(inFlight + 1); {
		case wanted <= budget+0.5e-9:
		case wanted > budget+2e-9:
			gate(no, "share of the concurrency")
		default:
			gate(unsure, "share of the concurrency")
		}
	}
	return result, reason
}

// keptFor reports whether what refills in a bucket may be kept for a job of another type that has waited for it for a
// full window: a large job must not be starved by small ones.
func (o *oracle) keptFor(m *oracleModel, t *oracleType, d *oracleDim, st *llmrate.Stats[string], now int64) bool {
	return slices.ContainsFunc(o.jobs, func(j *oracleJob) bool {
		if j.running || j.visit == nil || j.visit.model != m || j.typ == t {
			return false
		}
		return slices.ContainsFunc(m.dims, func(other oracleDim) bool {
			s := other.stats(st.Models[m.id])
			return other.rate > 0 && other.resource == d.resource && s.Used+j.need[m.index][d.resource] > s.Limit && now-j.visit.at >= other.per
		})
	})
}

// A prediction is what must become of a call at once.
type prediction struct {
	sure  bool
	runs  *oracleModel // starts here
	waits *oracleModel // queues here
	err   error        // fails with that
	why   string
}

// predict says what must become of a job that is launched now that all have come to rest.
func (o *oracle) predict(j *oracleJob, st *llmrate.Stats[string]) prediction {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now().UnixNano()
	if j.ctx.Err() != nil {
		return prediction{sure: true, err: context.Cause(j.ctx)}
	}
	if o.closed {
		return prediction{sure: true, err: llmrate.ErrClosed}
	}
	err, why := llmrate.ErrTooLarge, ""
	for _, m := range j.models {
		if o.tooLarge(j, m) {
			continue
		}
		err = llmrate.ErrNoCapacity
		if slices.ContainsFunc(o.jobs, func(other *oracleJob) bool {
			return other.typ == j.typ && !other.running && other.visit != nil && other.visit.model == m
		}) {
			why += m.id + ": queue; "
		} else {
			a, reason := o.room(m, j.typ, j.need[m.index], st, now)
			switch a {
			case unsure:
				return prediction{}
			case yes:
				return prediction{sure: true, runs: m, why: why}
			}
			why += m.id + ": " + reason + "; "
		}
		if o.wait(j, m, now) > 0 {
			if _, has := j.ctx.Deadline(); has {
				return prediction{} // may fail at once
			}
			return prediction{sure: true, waits: m, why: why}
		}
	}
	return prediction{sure: true, err: err, why: why}
}

// verify compares a prediction with what has become of the job.
func (o *oracle) verify(p prediction, j *oracleJob, ratiosBefore int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	err := j.err
	if !p.sure || len(o.ratios) != ratiosBefore {
		return // the call itself may have begun a cycle of adaptation
	}
	now := time.Now().UnixNano()
	o.moveOn(j, now, true)
	switch {
	case p.runs != nil:
		if len(j.attempts) == 0 || j.attempts[0].model != p.runs || j.attempts[0].start != j.launched {
			o.faultf("%s must start at once on %s, where there is room (%s); error %v", j.id, p.runs.id, p.why, err)
		}
	case p.waits != nil:
		if j.done || j.running || len(j.attempts) > 0 || j.visit == nil || j.visit.model != p.waits {
			o.faultf("%s must wait for %s (%s); error %v", j.id, p.waits.id, p.why, err)
		}
	default:
		if !j.done || !errors.Is(err, p.err) {
			o.faultf("%s must fail with %v (%s), not %v", j.id, p.err, p.why, err)
		}
	}
}

// over records that a job has ended other than by returning from a call.
func (o *oracle) over(j *oracleJob) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.remove(j)
}

func (o *oracle) remove(j *oracleJob) {
	j.done = true
	o.jobs = slices.DeleteFunc(o.jobs, func(other *oracleJob) bool { return other == j })
}

// close records that the limiter is about to be closed.
func (o *oracle) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.closed, o.closedAt = true, time.Now().UnixNano()
	}
}

// busy is how many jobs are not over.
func (o *oracle) busy() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.jobs)
}

// returned records that a call has returned, and checks its error. end is what the last run came to: nil if it
// succeeded, errDelegated if the job went on.
func (o *oracle) returned(j *oracleJob, end, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now().UnixNano()
	defer o.remove(j)
	j.err = err
	for _, cause := range j.causes {
		if err != nil && !errors.Is(err, cause) {
			o.faultf("%s: the error %v lacks the cause %v", j.id, err, cause)
		}
	}
	if len(j.attempts) > 0 && !errors.Is(end, errDelegated) {
		if (err == nil) != (end == nil) || !errors.Is(err, end) {
			o.faultf("%s returns %v, want %v", j.id, err, end)
		}
		return
	}
	o.moveOn(j, now, false)
	v := j.visit
	gone := func() {
		if v != nil {
			v.left = now
			v.model.canceled = append(v.model.canceled, now)
		}
		o.counts.canceled++
	}
	capacity, isCapacity := errors.AsType[*llmrate.CapacityError](err)
	switch {
	case err == nil:
		if v == nil || !j.running {
			o.faultf("%s returns without an error and has not run", j.id)
		}
	case isCapacity && !capacity.Deadline.IsZero():
		o.counts.failedFast++
		o.checkFailedFast(j, now, capacity)
		gone()
	case isCapacity:
		tooLarge := true // on every model that has not run it
		for _, m := range j.models {
			ran := slices.ContainsFunc(j.attempts, func(r *oracleRun) bool { return r.model == m })
			tooLarge = tooLarge && (ran || o.tooLarge(j, m))
		}
		if tooLarge {
			o.counts.tooLarge++
		}
		if errors.Is(err, llmrate.ErrTooLarge) != tooLarge || errors.Is(err, llmrate.ErrNoCapacity) == tooLarge {
			o.faultf("%s fails with %v; too large for every model: %t", j.id, err, tooLarge)
		}
		for j.visit != nil && j.visit.deadline == now {
			o.expire(j)
		}
		if j.visit != nil {
			o.faultf("%s fails with %v, but may wait for %s until %s", j.id, err, j.visit.model.id, clock(j.visit.deadline))
		}
	case j.ctx.Err() != nil && errors.Is(err, context.Cause(j.ctx)):
		gone()
	case errors.Is(err, llmrate.ErrClosed):
		if !o.closed {
			o.faultf("%s fails with %v", j.id, err)
		}
		gone()
	case errors.Is(end, errDelegated) && v == nil: // on every model
	default:
		o.faultf("%s fails with %v", j.id, err)
	}
}

// checkFailedFast: a context's deadline fails a waiting job only if no running job could free room in time on any model
// left, nor time alone.
func (o *oracle) checkFailedFast(j *oracleJob, now int64, e *llmrate.CapacityError) {
	deadline, has := j.ctx.Deadline()
	if !has || !e.Deadline.Equal(deadline) || !errors.Is(e, context.DeadlineExceeded) {
		o.faultf("%s fails for a deadline that it does not have: %v", j.id, e)
		return
	}
	for j.visit != nil && j.visit.deadline == now && j.visit.model.id != e.Models[len(e.Models)-1].Model {
		o.expire(j)
	}
	if j.visit == nil {
		o.faultf("%s fails for its deadline on no model of its own: %v", j.id, e)
		return
	}
	reached := now
	for i := -1; j.next+i < len(j.models) && reached < deadline.UnixNano(); i++ {
		m := j.visit.model
		if i >= 0 {
			m = j.models[j.next+i]
		}
		if o.tooLarge(j, m) {
			continue
		}
		for _, r := range o.runs[m.index] {
			if r.start < now && (!r.ended || r.end > now) {
				o.faultf("%s fails for its deadline %s although %s, which runs on %s, may end before", j.id, clock(deadline.UnixNano()), r.job.id, m.id)
				return
			}
		}
		wait := o.wait(j, m, reached)
		end := deadline.UnixNano()
		if wait < end-reached {
			end = reached + wait
		}
		room, simple := now, !o.binds(m)
		for i := range m.dims {
			d := &m.dims[i]
			n := j.need[m.index][d.resource]
			if d.rate > 0 {
				simple = false
			} else if o.charged(m, d, nil, now, true)+n > d.max {
				room = max(room, (now/d.per+1)*d.per)
			}
		}
		if simple && room < end && o.onlyWaiter(j, m) {
			o.faultf("%s fails for its deadline %s although %s has room at %s", j.id, clock(deadline.UnixNano()), m.id, clock(room))
			return
		}
		if reached += wait; reached < now {
			reached = math.MaxInt64
		}
	}
}

func (o *oracle) onlyWaiter(j *oracleJob, m *oracleModel) bool {
	return !slices.ContainsFunc(o.jobs, func(other *oracleJob) bool {
		return other != j && !other.running && other.visit != nil && other.visit.model == m
	})
}

// checkResult checks what Run has returned beside the error.
func (o *oracle) checkResult(j *oracleJob, res llmrate.Result[string]) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(res.Attempts) != len(j.attempts) {
		o.faultf("%s ran on %d models, and its result has %d", j.id, len(j.attempts), len(res.Attempts))
		return
	}
	cost := 0.0
	for i, a := range res.Attempts {
		r := j.attempts[i]
		if a.Model != r.model.id || a.UsageKnown != r.known || a.Waited != r.waited || a.Ran != time.Duration(r.end-r.start) {
			o.faultf("%s: attempt %d is %+v, want %s known %t waited %s ran %s", j.id, i, a, r.model.id, r.known, r.waited, time.Duration(r.end-r.start))
		}
		if r.known && r.model.amounts(a.Usage) != r.used {
			o.faultf("%s: attempt %d used %+v, want %v", j.id, i, a.Usage, r.used)
		}
		cost += r.model.price.Cost(a.Usage)
	}
	if math.Abs(res.Cost-cost) > 1e-9 {
		o.faultf("%s: cost %g, want %g", j.id, res.Cost, cost)
	}
	// Whenever a job does not run, it waits.
	if want := time.Duration(time.Now().UnixNano()-j.launched) - j.ran; res.Waited != want {
		o.faultf("%s: waited %s, want %s", j.id, res.Waited, want)
	}
}

// check compares everything with Stats, when all have come to rest.
func (o *oracle) check(l *limiter) llmrate.Stats[string] {
	st := l.Stats()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.counts.checks++
	now := time.Now().UnixNano()
	if !st.Time.Equal(time.Unix(0, now)) {
		o.faultf("Stats of %s", st.Time)
	}
	waiting := map[*oracleModel]map[*oracleType][]*oracleVisit{}
	for _, m := range o.models {
		waiting[m] = map[*oracleType][]*oracleVisit{}
	}
	for _, j := range o.jobs {
		o.moveOn(j, now, true)
		switch v := j.visit; {
		case j.running:
		case v == nil:
			o.faultf("%s has waited for all its models as long as it may and does not return", j.id)
		case j.ctx.Err() != nil:
			o.faultf("%s still waits for %s although its context has ended", j.id, v.model.id)
		case o.closed:
			o.faultf("%s still waits for %s although the limiter is closed", j.id, v.model.id)
		default:
			waiting[v.model][j.typ] = append(waiting[v.model][j.typ], v)
		}
	}
	o.checkRatios(&st)
	o.checkStarts(now, waiting)
	o.checkJobs(&st, waiting)
	memory := int64(0)
	for _, m := range o.models {
		o.checkWindows(m, &st, now)
		memory += o.checkShares(m, &st, now, waiting[m])
	}
	if limit := o.cfg.Memory.Limit; st.Memory != (llmrate.MemoryStats{Limit: limit, Budget: o.budget, Used: memory}) || memory > o.budget {
		o.faultf("memory %+v, want %d of %d used", st.Memory, memory, o.budget)
	}
	if len(o.faults) == 0 {
		o.checkLiveness(&st, now, waiting)
	}
	return st
}

func (o *oracle) checkRatios(st *llmrate.Stats[string]) {
	sum, want := 0.0, 0.0
	for i, t := range o.types {
		s := st.JobTypes[t.name]
		sum += s.Ratio
		want += t.initial
		if math.Abs(s.InitialRatio-t.initial) > 1e-9 || s.Fixed != t.cfg.FixedRatio || s.Fixed && s.Ratio != s.InitialRatio {
			o.faultf("%s has the ratio %g, initially %g, fixed %t; want initially %g", t.name, s.Ratio, s.InitialRatio, s.Fixed, t.initial)
		}
		last := o.ratios[len(o.ratios)-1].ratios
		if math.Abs(s.Ratio-last[i]) > 1e-12 {
			o.faultf("%s has the ratio %g, the last event said %g", t.name, s.Ratio, last[i])
		}
		if s.Ratio < min(0.01, t.initial)-1e-9 {
			o.faultf("%s has the ratio %g", t.name, s.Ratio)
		}
	}
	if math.Abs(sum-want) > 1e-9 {
		o.faultf("the ratios sum to %g, want %g", sum, want)
	}
}

// checkJobs: everybody who runs or waits is in Stats.Jobs, once.
func (o *oracle) checkJobs(st *llmrate.Stats[string], waiting map[*oracleModel]map[*oracleType][]*oracleVisit) {
	want := map[string]llmrate.JobInfo{}
	for _, j := range o.jobs {
		info := llmrate.JobInfo{JobID: j.id, JobType: j.typ.name, Estimate: j.estimate}
		switch {
		case j.running:
			info.Model, info.Since = j.run.model.id, time.Unix(0, j.run.start)
		case j.visit != nil:
			info.Model, info.Since, info.Waiting = j.visit.model.id, time.Unix(0, j.visit.at), true
		default:
			continue
		}
		want[j.id] = info
	}
	for _, info := range st.Jobs {
		if want[info.JobID] != info {
			o.faultf("Stats has %+v, want %+v", info, want[info.JobID])
		}
		delete(want, info.JobID)
	}
	for _, info := range want {
		o.faultf("Stats lacks %+v", info)
	}
}

// checkWindows: conservation, and nothing negative.
func (o *oracle) checkWindows(m *oracleModel, st *llmrate.Stats[string], now int64) {
	ms := st.Models[m.id]
	for i := range m.dims {
		d := &m.dims[i]
		s := d.stats(ms)
		if s.Limit != d.max || s.Remaining != max(s.Limit-s.Used, 0) || s.Used < 0 {
			o.faultf("%s: %s is %+v, want the limit %d", m.id, d.name, s, d.max)
		}
		if d.rate == 0 {
			if want := o.charged(m, d, nil, now, true); s.Used != want {
				o.faultf("%s: %s has %d used, want %d", m.id, d.name, s.Used, want)
			}
			if edge := (now/d.per + 1) * d.per; s.ResetsAt.UnixNano() != edge {
				o.faultf("%s: %s resets at %s, want %s", m.id, d.name, clock(s.ResetsAt.UnixNano()), clock(edge))
			}
			continue
		}
		level, _ := o.level(m, d, nil, now, true)
		if float64(s.Used) < level-tolerance(d) {
			o.faultf("%s: %s lacks %d, but in truth %g: more was given back than was there", m.id, d.name, s.Used, level)
		}
		// Refunds are in whole units, and Used is rounded up.
		if !o.crowded(m, d, now) && float64(s.Used) > level+2 {
			o.faultf("%s: %s lacks %d, but in truth only %g", m.id, d.name, s.Used, level)
		}
	}
}

// checkShares compares the counts of each job type, and what its share allows. It returns the memory held on the model.
func (o *oracle) checkShares(m *oracleModel, st *llmrate.Stats[string], now int64, waiting map[*oracleType][]*oracleVisit) (memory int64) {
	ms := st.Models[m.id]
	total := 0
	r := o.ratios[len(o.ratios)-1].ratios
	for _, t := range o.types {
		inFlight := 0
		for _, run := range o.runs[m.index] {
			if !run.ended && run.job.typ == t {
				inFlight++
			}
		}
		memory += int64(inFlight) * t.cfg.EstimatedMemory
		total += len(waiting[t])
		s := ms.JobTypes[t.name]
		if s.InFlight != inFlight || s.Waiting != len(waiting[t]) {
			o.faultf("%s: %s has %d in flight and %d waiting, want %d and %d", m.id, t.name, s.InFlight, s.Waiting, inFlight, len(waiting[t]))
		}
		slots := math.Inf(1)
		if n := t.cfg.EstimatedMemory; n > 0 {
			slots = min(slots, o.memoryPart(m, t, r)/float64(n))
		}
		slots = min(slots, o.flightBudget(m, t, r))
		for i := range m.dims {
			d := &m.dims[i]
			if n := t.need[m.index][d.resource]; n > 0 {
				slots = min(slots, o.dimBudget(m, d, t, r, d.stats(ms).Used)/float64(n))
			}
		}
		low, high := math.Floor(slots+0.5e-9), math.Floor(slots+2e-9)
		if !o.neverFits(m, t.need[m.index], t.cfg.EstimatedMemory) {
			low, high = max(low, 1), max(high, 1)
		}
		if math.IsInf(slots, 1) {
			low, high = math.MaxInt, math.MaxInt
		}
		if float64(s.Slots) < low || float64(s.Slots) > high {
			o.faultf("%s: %s has %d slots, want %g", m.id, t.name, s.Slots, low)
		}
		if math.IsNaN(s.Load) || s.Load < 0 || len(waiting[t]) > 0 && s.Load < 1 {
			o.faultf("%s: %s has a load of %g with %d waiting", m.id, t.name, s.Load, len(waiting[t]))
		}
	}
	if c := ms.Concurrency; c != (llmrate.ConcurrencyStats{Active: int64(m.running), Limit: m.concurrent, Waiting: int64(total)}) {
		o.faultf("%s: concurrency %+v, want %d active and %d waiting", m.id, c, m.running, total)
	}
	return memory
}

// checkLiveness: nobody waits who is first in his queue and for whom there is room everywhere. The other way round, what
// Available says must be true.
func (o *oracle) checkLiveness(st *llmrate.Stats[string], now int64, waiting map[*oracleModel]map[*oracleType][]*oracleVisit) {
	for _, m := range o.models {
		for _, t := range o.types {
			queue := waiting[m][t]
			stuck := len(queue) > 0
			var head *oracleVisit
			for _, v := range queue {
				if slices.ContainsFunc(queue, func(w *oracleVisit) bool { return w.before(v) }) {
					continue
				}
				head = v
				o.counts.heads++
				if a, _ := o.room(m, t, v.job.need[m.index], st, now); a != yes {
					stuck = false
				}
			}
			if stuck {
				o.faultf("%s (%s, %v) still waits for %s, since %s, although there is room for it; ratios %v, memory %+v, %+v",
					head.job.id, t.name, head.job.need[m.index], m.id, clock(head.at), o.ratios[len(o.ratios)-1], st.Memory, st.Models[m.id])
			}
		}
	}
}

// checkAvailable compares Available with what a job would find.
func (o *oracle) checkAvailable(l *limiter, st *llmrate.Stats[string]) {
	for _, t := range o.types {
		got, ok := l.Available(t.name)
		j := &oracleJob{typ: t, models: o.models, estimate: t.estimate, need: t.need, noWait: true, ctx: o.ctx}
		p := o.predict(j, st)
		o.mu.Lock()
		if p.sure && (ok != (p.runs != nil) || ok && got != p.runs.id) {
			o.faultf("Available(%q) is %q, %t; want %+v", t.name, got, ok, p)
		}
		o.mu.Unlock()
	}
}

// checkEnd: after the last job nothing is left.
func (o *oracle) checkEnd(l *limiter) {
	st := o.check(l)
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.jobs) > 0 || len(st.Jobs) > 0 {
		o.faultf("%d calls have not returned; Stats has %d jobs", len(o.jobs), len(st.Jobs))
	}
	if st.Memory.Used != 0 {
		o.faultf("%d bytes are still held", st.Memory.Used)
	}
	for id, m := range st.Models {
		if m.Concurrency.Active != 0 || m.Concurrency.Waiting != 0 {
			o.faultf("%s: %+v", id, m.Concurrency)
		}
	}
	if o.cfg.OnEvent == nil {
		return
	}
	for e, n := range o.overages {
		if n != 0 {
			o.faultf("%+v: %d too few", e, n)
		}
	}
	if c := o.counts; c.startEvents != c.starts || c.endEvents != c.ends || c.starts != c.ends {
		o.faultf("%d starts and %d ends; the events say %d and %d", c.starts, c.ends, c.startEvents, c.endEvents)
	}
}

var errDelegated = errors.New("delegated")
