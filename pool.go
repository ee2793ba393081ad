package llmrate

import (
	"math"
	"sync"
	"time"
)

// instant is one reading of the clock. Windows go by the wall clock, which providers share; waits go by the monotonic
// one, which does not jump.
type instant struct {
	wall int64 // nanoseconds since the Unix epoch
	mono int64 // nanoseconds since the limiter was made
}

// after is the monotonic time at which the wall clock, if it runs evenly, will show wall.
func (now instant) after(wall int64) int64 {
	if wall == math.MaxInt64 {
		return wall // never
	}
	if wall <= now.wall {
		return now.mono
	}
	if wall-now.wall < 0 {
		return math.MaxInt64
	}
	return satAdd(now.mono, wall-now.wall)
}

// A dimension is one windowed limit of a model. A model's limits are a vector of dimensions and its concurrency.
type dimension struct {
	window
	kind     limitKind
	custom   int // index in Limits.Custom
	resource int // index in amounts
}

// A pool is one model: what has been charged to its limits, how each job type shares in that, and who waits.
//
// mu guards everything below it. It is held for arithmetic only, never across I/O, a callback or a log call. Locks are
// taken in the order ratios.mu, pool.mu, memoryGate.mu; two pools only by Stats, in order of index.
//
// Whoever frees capacity grants it: release, and every change that may let a waiter in, ends in drain, which admits
// on the waiters' behalf and then closes their channels. A woken goroutine has nothing left to check.
type pool struct {
	core        *core
	name        string
	index       int
	pricing     Pricing
	countTokens func(Usage) int64
	customs     int // number of custom limits

	mu      sync.Mutex
	dims    []dimension
	shares  []share // by job type
	clock   int64   // to which dims were brought last
	steady  period  // in which no dimension changes by itself
	charges uint64  // number of the last charge

	maxConcurrent int64 // 0: not limited
	inFlight      int64

	minSlots, maxSlots int64 // bounds on a job type's slots; 0: none

	waiting  int // in all queues
	arrivals uint64
	timer    *time.Timer // runs look at timerAt
	timerAt  int64       // monotonic; 0 if the timer is stopped
	holdTill int64       // monotonic; until then the fleet has nothing to give
	wake     []int       // models to look at once this one is unlocked
	claim    *attempt    // a head that has waited for a bucket so long that what refills is kept for it

	running, queued attemptList // for Stats
	closed          bool
	ending          int           // settlements of which the backend or OnEvent is still to be told
	idle            chan struct{} // after close: closed when nothing runs or ends any more
}

// A share is one job type's part of one model, kept in units of each dimension rather than in slots, so that jobs of
// different sizes share fairly.
type share struct {
	typ      *jobType
	ratio    float64
	need     amounts  // what a job of the type reserves unless told otherwise
	windows  []window // what the type has charged in each dimension; brought up to date when looked at
	levels   []int64  // how much of each dimension it may have charged
	steady   period   // in which none of windows changes by itself
	inFlight int64
	queue    waitQueue
	skip     bool // in drain: the head of the queue does not fit

	latestDeadline int64 // of the jobs that arrived here, while any is here
}

// attemptState is where an attempt stands. Only the holder of its pool's lock changes it.
type attemptState int8

const (
	attemptNew     attemptState = iota
	attemptQueued               // waits in its job type's queue
	attemptRunning              // holds its reservation
	attemptExpired              // has waited as long as it may
	attemptRefused              // was waiting when the limiter was closed
	attemptSettled              // has ended
)

// An attempt is a job on one model: first a waiter, then a reservation.
type attempt struct {
	pool     *pool
	share    *share
	jobID    string // or "": see id
	number   uint64
	estimate Usage
	need     amounts
	memory   int64
	maxWait  time.Duration

	state   attemptState
	charge  uint64 // number under which need was charged
	slot    int    // index in pool.running or pool.queued
	queued  instant
	started instant
	waited  time.Duration // in the queue
	ran     time.Duration

	// while queued
	prev, next *attempt
	arrival    uint64
	deadline   int64 // monotonic
	ownTimer   bool
	ready      chan struct{}
	refusal    refusal
	starved    bool // as head of its queue, found no room in a window that is over

	backendGrant any
}

// id is the ID of the job.
func (a *attempt) id() string {
	if a.jobID == "" {
		return a.pool.core.jobID(a.number)
	}
	return a.jobID
}

// refusal is why an attempt does not fit. The zero value stands for a queue in front of it.
type refusal struct {
	reason  Reason
	dim     int   // index of the dimension that is short; or noDim
	retryAt int64 // wall; when time alone makes room; math.MaxInt64 if a job must end first
}

const (
	dimConcurrency = -1
	dimMemory      = -2
	noDim          = -3
)

// advance brings all dimensions to now.
func (p *pool) advance(now int64) {
	p.clock = now
	if p.steady.holds(now) {
		return
	}
	p.steady = always
	for i := range p.dims {
		before := p.dims[i].at
		if p.dims[i].advance(now, p.charges+1) && p.waiting > 0 {
			for k := range p.shares {
				if h := p.shares[k].queue.head; h != nil && h.refusal.reason == ReasonLimit && h.refusal.dim == i {
					h.starved = true
				}
			}
		}
		if p.dims[i].at < before { // the clock went far back: the shares must not stay ahead
			for k := range p.shares {
				p.advanceShare(&p.shares[k])
			}
		}
		p.steady.limit(&p.dims[i].window)
	}
}

// advanceShare brings one share to where the dimensions are.
func (p *pool) advanceShare(s *share) {
	if s.steady.holds(p.clock) {
		return
	}
	s.steady = always
	for i := range s.windows {
		s.windows[i].advance(p.clock, p.charges+1)
		s.steady.limit(&s.windows[i])
	}
}

// setRatio makes the type's part of each bucket refill at ratio times the bucket's rate. What a period means to such a
// window is stretched, so that the fraction of a unit in its rate is not lost.
func (p *pool) setRatio(s *share, ratio float64) {
	p.advanceShare(s)
	s.ratio = ratio
	s.steady = period{}
	for i := range p.dims {
		s.levels[i] = int64(p.budget(s, i) * (1 + ratioTolerance))
		if d := &p.dims[i]; d.rate > 0 {
			stretch := min(maxStretch, math.MaxInt64/2/d.per)
			s.windows[i].per = d.per * stretch
			s.windows[i].rate = max(1, int64(math.Round(p.ratio(s)*float64(d.rate)*float64(stretch))))
		}
	}
}

const maxStretch = 1 << 16 // times MaxAmount is still an int64

// fit reports whether a job of the share that needs so much may start now, the memory and the backend left aside. The
// dimensions must be up to date. A refusal names the dimension that time clears last.
func (p *pool) fit(s *share, need *amounts) (refusal, bool) {
	p.advanceShare(s)
	r := refusal{}
	for i := range p.dims {
		d, w := &p.dims[i], &s.windows[i]
		n := need[d.resource]
		if !d.fits(n) {
			r.later(ReasonLimit, i, d.fitsAt(n))
		} else if n == 0 && d.used > d.max { // who reserves nothing may still use some: not before a debt is paid
			r.later(ReasonLimit, i, d.fallsTo(d.max))
		} else if n > 0 && w.used > 0 && p.sharesBind() {
			if level := s.levels[i] - n; w.used > level {
				r.later(ReasonShare, i, w.fallsTo(max(level, 0)))
			}
		}
	}
	if r.reason != "" {
		return r, false
	}
	if p.maxConcurrent > 0 && p.inFlight >= p.maxConcurrent {
		return refusal{ReasonLimit, dimConcurrency, math.MaxInt64}, false
	}
	if s.inFlight > 0 && p.sharesBind() && float64(s.inFlight+1) > p.concurrencyBudget(s)+ratioTolerance {
		return refusal{ReasonShare, dimConcurrency, math.MaxInt64}, false
	}
	return r, true
}

func (r *refusal) later(reason Reason, dim int, retryAt int64) {
	if r.reason == "" || retryAt > r.retryAt {
		*r = refusal{reason, dim, retryAt}
	}
}

// sharesBind is false for a single job type, whose share is the model's limit.
func (p *pool) sharesBind() bool { return len(p.shares) > 1 || p.maxSlots > 0 }

func (p *pool) ratio(s *share) float64 {
	if len(p.shares) == 1 {
		return 1
	}
	return s.ratio
}

// budget is how much of a dimension a job type may have charged: its ratio of all that this process can have in the
// window, which is what it has charged and what remains of the limit: without a fleet, the limit. What the type itself
// has charged counts against it, so nothing counts twice.
func (p *pool) budget(s *share, i int) float64 {
	d := &p.dims[i]
	return p.bound(p.ratio(s)*float64(d.max), float64(s.need[d.resource]))
}

// concurrencyBudget is how many jobs of the type may run at once; +Inf if nothing limits them.
func (p *pool) concurrencyBudget(s *share) float64 {
	budget := math.Inf(1)
	if p.maxConcurrent > 0 {
		budget = p.ratio(s) * float64(p.maxConcurrent)
	}
	return p.bound(budget, 1)
}

// bound applies MinCapacity and MaxCapacity to a budget, given what one job of the type needs of it.
func (p *pool) bound(budget, perJob float64) float64 {
	if perJob == 0 {
		return budget
	}
	if p.minSlots > 0 {
		budget = max(budget, float64(p.minSlots)*perJob)
	}
	if p.maxSlots > 0 {
		budget = min(budget, float64(p.maxSlots)*perJob)
	}
	return budget
}

// slots is how many average jobs of the type the budgets allow, those charged or running included, and the load: how
// much of the budget that binds is used. The smallest binds, of equals the one with the longest window.
func (p *pool) slots(s *share) (slots, load float64) {
	p.advanceShare(s)
	slots = math.Inf(1)
	possible := p.neverFits(&s.need) < 0
	bind := func(n, used, budget float64) {
		if n > slots {
			return
		}
		slots, load = n, 0
		if used > 0 {
			load = used / max(budget, 1)
		}
	}
	if n := s.typ.memory; n > 0 {
		g := p.core.memory
		g.mu.Lock()
		part, used := g.part(s.typ.index, p, n), float64(g.parts[s.typ.index].used)
		possible = possible && n <= g.hard
		g.mu.Unlock()
		bind(math.Floor(part/float64(n)+ratioTolerance), used, part)
	}
	if budget := p.concurrencyBudget(s); !math.IsInf(budget, 1) {
		bind(math.Floor(budget+ratioTolerance), float64(s.inFlight), budget)
	}
	for i := range p.dims {
		if n := s.need[p.dims[i].resource]; n > 0 {
			budget := p.budget(s, i)
			bind(math.Floor(budget/float64(n)+ratioTolerance), float64(s.windows[i].used), budget)
		}
	}
	if slots < 1 && possible {
		slots = 1 // whoever has nothing charged may start one job
	}
	return slots, load
}

// load of a job type on this model, at least 1 while it waits here.
func (p *pool) load(s *share) float64 {
	_, load := p.slots(s)
	if s.queue.length > 0 {
		load = max(load, 1)
	}
	return load
}

// neverFits is the index of the first dimension whose whole limit is less than needed, or -1.
func (p *pool) neverFits(need *amounts) int {
	for i := range p.dims {
		if d := &p.dims[i]; need[d.resource] > d.max {
			return i
		}
	}
	return -1
}

// room reports whether every gate has room for an attempt, and if so takes its memory: grant must follow.
func (p *pool) room(now instant, a *attempt) (refusal, bool) {
	if now.mono < p.holdTill {
		return refusal{ReasonBackend, noDim, satAdd(now.wall, p.holdTill-now.mono)}, false
	}
	if r, ok := p.fit(a.share, &a.need); !ok {
		return r, false
	}
	if p.claim != a && p.claimed(&a.need) {
		return p.claim.refusal, false
	}
	if a.memory > 0 {
		wake, ok := p.core.memory.take(a, p)
		p.lookAt(wake)
		if !ok {
			return refusal{ReasonMemory, dimMemory, math.MaxInt64}, false
		}
	}
	return refusal{}, true
}

// grant charges an attempt for which there is room.
func (p *pool) grant(now instant, a *attempt) {
	p.charges++
	a.charge = p.charges
	s := a.share
	for i := range p.dims {
		d := &p.dims[i]
		n := a.need[d.resource]
		d.charge(n, a.charge)
		s.windows[i].charge(n, a.charge)
	}
	p.inFlight++
	s.inFlight++
	if a.ready != nil {
		a.waited = time.Duration(now.mono - a.queued.mono)
	}
	a.started = now
	a.state = attemptRunning
	p.running.add(a)
}

// admit starts a new attempt if there is room for it now and nobody of its job type waits.
func (p *pool) admit(now instant, a *attempt) (refusal, bool) {
	p.advance(now.wall)
	p.arrive(now, a)
	if p.waiting > 0 {
		p.drain(now)
		if a.share.queue.length > 0 {
			return refusal{ReasonQueue, noDim, math.MaxInt64}, false
		}
	}
	r, ok := p.room(now, a)
	if ok {
		p.grant(now, a)
	}
	return r, ok
}

// release corrects a running attempt to what it used and frees what else it held, without letting anybody in yet. used
// nil keeps the estimate charged.
func (p *pool) release(now instant, a *attempt, used *amounts) {
	s := a.share
	p.advance(now.wall)
	p.advanceShare(s)
	for i := range p.dims {
		if used == nil {
			break
		}
		d := &p.dims[i]
		switch n := used[d.resource] - a.need[d.resource]; {
		case n < 0:
			d.refund(-n, a.charge)
			s.windows[i].refund(-n, a.charge)
		case n > 0:
			p.charges++
			d.charge(n, p.charges)
			s.windows[i].charge(n, p.charges)
		}
	}
	p.inFlight--
	s.inFlight--
	a.state = attemptSettled
	p.running.remove(a)
	p.lookAt(p.core.memory.release(a))
	p.signalIdle()
}

// signalIdle tells Close when the last job has ended and everybody knows of it.
func (p *pool) signalIdle() {
	if p.idle != nil && p.inFlight == 0 && p.ending == 0 {
		close(p.idle)
		p.idle = nil
	}
}

// ended is called when the backend and OnEvent have been told of a job's end.
func (p *pool) ended() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending--
	p.signalIdle()
}

// settle ends a running attempt and lets in whoever fits now.
func (p *pool) settle(now instant, a *attempt, used *amounts) {
	p.release(now, a, used)
	if p.waiting > 0 {
		p.drain(now)
	}
}

// arrive gives an attempt its place in the order of its job type and the end of its wait.
//
// Deadlines rise with arrival, to within the jitter of the clocks, except where WithMaxWait makes one earlier than that
// of somebody before. Such an attempt keeps a timer of its own; for all others the pool's timer needs to watch only the
// head of the queue.
func (p *pool) arrive(now instant, a *attempt) {
	s := a.share
	p.arrivals++
	a.arrival = p.arrivals
	a.queued = now
	a.deadline = satAdd(now.mono, int64(a.maxWait))
	if s.inFlight == 0 && s.queue.length == 0 {
		s.latestDeadline = 0
	}
	a.ownTimer = a.deadline < s.latestDeadline-int64(time.Millisecond)
	s.latestDeadline = max(s.latestDeadline, a.deadline)
}

// enqueue makes an attempt wait.
func (p *pool) enqueue(a *attempt, r refusal) {
	a.refusal = r
	a.ready = make(chan struct{})
	a.state = attemptQueued
	p.queued.add(a)
	p.waiting++
	a.share.queue.insert(a)
}

// requeue takes back what an attempt was granted, because the backend has nothing to give for the time of hold, and
// puts the job back in its place. The attempt that now waits is a new one: others may still be reading the old.
func (p *pool) requeue(now instant, a *attempt, hold time.Duration) *attempt {
	p.release(now, a, &amounts{})
	hold = max(hold, time.Millisecond) // or it would be granted again at once
	p.holdTill = satAdd(now.mono, int64(hold))
	if h := a.share.queue.head; h != nil { // it stands behind again, and only heads may claim anything
		p.dropClaim(h)
		p.lookAt(p.core.memory.leave(h))
	}
	again := &attempt{
		pool: p, share: a.share, jobID: a.jobID, number: a.number, estimate: a.estimate, need: a.need, memory: a.memory, maxWait: a.maxWait,
		queued: a.queued, arrival: a.arrival, deadline: a.deadline, ownTimer: a.ownTimer,
		starved: a.starved,
	}
	p.enqueue(again, refusal{ReasonBackend, noDim, satAdd(now.wall, int64(hold))})
	p.drain(now)
	return again
}

// dequeue takes a waiting attempt out of its queue.
func (p *pool) dequeue(a *attempt) {
	a.share.queue.remove(a)
	p.queued.remove(a)
	p.waiting--
}

// drain admits the waiters that fit now and turns away those that have waited long enough.
//
// Each queue is served strictly in order. Between the queues, a head that was starved through a whole window comes
// first, then the type furthest below its share, then the head that came first. Admitting only ever takes capacity,
// so that a head that does not fit need not be looked at again in the same drain.
func (p *pool) drain(now instant) {
	p.advance(now.wall)
	for i := range p.shares {
		p.shares[i].skip = false
	}
	for s := p.neediest(); s != nil; s = p.neediest() {
		a := s.queue.head
		r, ok := p.room(now, a)
		a.refusal = r
		switch {
		case ok:
			p.dequeue(a)
			p.dropClaim(a)
			p.grant(now, a)
			close(a.ready)
		case a.deadline <= now.mono:
			p.turnAway(now, a, attemptExpired)
		default:
			p.starve(now, a)
			s.skip = true
		}
	}
	p.arm(now)
}

// neediest is the share whose queue is to be served next; nil if no head is left that may fit.
func (p *pool) neediest() *share {
	var best *share
	for i := range p.shares {
		s := &p.shares[i]
		if s.queue.head != nil && !s.skip && (best == nil || p.before(s, best)) {
			best = s
		}
	}
	return best
}

func (p *pool) before(s, other *share) bool {
	h, o := s.queue.head, other.queue.head
	if h.starved != o.starved {
		return h.starved
	}
	_, load := p.slots(s)
	_, otherLoad := p.slots(other)
	if load != otherLoad {
		return load < otherLoad
	}
	return h.arrival < o.arrival
}

// starve sees to it that a head that does not fit gets its turn, if smaller jobs of other types keep taking what it needs.
//
// A fixed window opens empty, and then starved heads come first. A bucket and the memory never empty out by themselves:
// once a head has waited there for as long as a full bucket takes, or for claimAfter, what comes free is kept for it.
func (p *pool) starve(now instant, a *attempt) {
	after := p.claimTime(a)
	if a.refusal.reason != ReasonMemory {
		p.lookAt(p.core.memory.leave(a))
	} else if now.mono >= after {
		p.core.memory.starving(a)
	}
	if !p.lacksBucket(a) {
		p.dropClaim(a)
	} else if p.claim == nil && now.mono >= after {
		p.claim = a
	}
}

// claimTime is when what a head lacks begins to be kept for it; math.MaxInt64 for never.
func (p *pool) claimTime(a *attempt) int64 {
	switch {
	case a.refusal.reason == ReasonMemory:
		return satAdd(a.queued.mono, claimAfter)
	case p.lacksBucket(a):
		return satAdd(a.queued.mono, p.dims[a.refusal.dim].per)
	}
	return math.MaxInt64
}

// lacksBucket reports whether a head waits for a bucket to fill.
func (p *pool) lacksBucket(a *attempt) bool {
	return a.refusal.reason == ReasonLimit && a.refusal.dim >= 0 && p.dims[a.refusal.dim].rate > 0
}

// claimed reports whether something of what is needed is kept for a starved head.
func (p *pool) claimed(need *amounts) bool {
	return p.claim != nil && need[p.dims[p.claim.refusal.dim].resource] > 0
}

func (p *pool) dropClaim(a *attempt) {
	if p.claim != a {
		return
	}
	p.claim = nil
	for i := range p.shares {
		p.shares[i].skip = false
	}
}

// turnAway ends a waiting attempt without a grant.
func (p *pool) turnAway(now instant, a *attempt, state attemptState) {
	p.dequeue(a)
	p.dropClaim(a)
	a.state = state
	a.waited = time.Duration(now.mono - a.queued.mono)
	p.lookAt(p.core.memory.leave(a))
	close(a.ready)
}

// arm sets the timer to the next moment at which time alone may change something for a head of a queue.
func (p *pool) arm(now instant) {
	next, watchClock := int64(math.MaxInt64), false
	for i := range p.shares {
		h := p.shares[i].queue.head
		if h == nil {
			continue
		}
		next = min(next, h.deadline, now.after(h.refusal.retryAt))
		watchClock = watchClock || h.refusal.retryAt != math.MaxInt64
		if claim := p.claimTime(h); claim > now.mono {
			next = min(next, claim)
		}
		switch h.refusal.reason {
		case ReasonMemory:
			next = min(next, p.core.memory.due.Load(), p.core.ratios.due.Load())
		case ReasonShare:
			next = min(next, p.core.ratios.due.Load())
		}
	}
	if watchClock { // the timer does not see the wall clock jump
		next = min(next, satAdd(now.mono, clockSlack))
	}
	switch {
	case next == math.MaxInt64:
		p.stopTimer()
	case p.timerAt == 0 || next < p.timerAt:
		// A timer that is too early is left alone: it finds nothing to do and is set again. That is cheaper than
		// moving it with every head.
		p.timerAt = max(next, now.mono+1)
		delay := time.Duration(p.timerAt - now.mono)
		if p.timer == nil {
			p.timer = time.AfterFunc(delay, p.onTimer)
		} else {
			p.timer.Reset(delay)
		}
	}
}

func (p *pool) stopTimer() {
	if p.timerAt != 0 {
		p.timer.Stop()
		p.timerAt = 0
	}
}

func (p *pool) onTimer() {
	now := p.core.now()
	p.core.keepUp(now)
	p.mu.Lock()
	if p.timerAt <= now.mono { // else it was set again while this call was on its way
		p.timerAt = 0
	}
	p.drain(now)
	p.unlock()
}

// lookAt notes models whose waiters may fit now, this one possibly among them; unlock looks at them.
func (p *pool) lookAt(models []int) { p.wake = append(p.wake, models...) }

// unlock gives up the lock and then lets in the waiters for whom the holder has made room elsewhere.
func (p *pool) unlock() {
	wake := p.wake
	if wake != nil {
		p.wake = nil
	}
	p.mu.Unlock()
	for _, i := range wake {
		p.core.look(p.core.pools[i])
	}
}

func (p *pool) setRatios(now instant, ratios []float64) {
	p.advance(now.wall)
	for i := range p.shares {
		p.setRatio(&p.shares[i], ratios[i])
	}
	p.drain(now)
}

// close turns away everybody who waits and returns a channel that is closed when nothing runs any more.
func (p *pool) close() <-chan struct{} {
	p.mu.Lock()
	defer p.unlock()
	p.closed = true
	now := p.core.now()
	for i := range p.shares {
		for q := &p.shares[i].queue; q.head != nil; {
			p.turnAway(now, q.head, attemptRefused)
		}
	}
	p.stopTimer()
	if p.inFlight == 0 && p.ending == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	if p.idle == nil {
		p.idle = make(chan struct{})
	}
	return p.idle
}

// shortage puts a refusal into numbers.
func (p *pool) shortage(a *attempt, r refusal) Shortage {
	s := Shortage{Model: p.name, Reason: r.reason, Waited: a.waited}
	switch r.dim {
	case noDim:
	case dimMemory:
		g := p.core.memory
		g.mu.Lock()
		s.Resource, s.Needed, s.Limit, s.Free = "memory", a.memory, g.budget, max(g.budget-g.used, 0)
		g.mu.Unlock()
	case dimConcurrency:
		s.Resource, s.Needed = "concurrency", 1
		s.Limit, s.Free = p.maxConcurrent, p.maxConcurrent-p.inFlight
		if r.reason == ReasonShare {
			s.Limit = int64(p.concurrencyBudget(a.share) + ratioTolerance)
			s.Free = max(s.Limit-a.share.inFlight, 0)
		}
	default:
		d := &p.dims[r.dim]
		s.Resource, s.Per = string(resources[d.resource]), time.Duration(d.per)
		s.Needed, s.Limit, s.Free = a.need[d.resource], d.max, d.remaining()
		if r.reason == ReasonShare {
			s.Limit = a.share.levels[r.dim]
			s.Free = max(s.Limit-a.share.windows[r.dim].used, 0)
		}
	}
	if r.retryAt != math.MaxInt64 {
		s.RetryAt = time.Unix(0, r.retryAt)
	}
	return s
}
