package llmrate

import (
	"math"
	"math/bits"
	"time"
)

// A window counts what has been charged to one dimension of one model. It is pure arithmetic: callers hold the
// model's lock and pass the time, in nanoseconds since the Unix epoch.
//
// Fixed windows are aligned to the epoch and forget everything at their edge. A continuous window is a token bucket,
// kept as its complement: used rises with every charge and drains at rate units per period, exactly, in integers.
//
// Charges are numbered by the model. A number says, without any clock, which window a charge went to, so that a
// refund reaches the window that was charged or none (SCENARIOS 4.4 to 4.7).
type window struct {
	max  int64 // most that may be charged in a fixed window, or the bucket's size
	rate int64 // continuous: units that drain in each period; 0: a fixed window
	per  int64 // the period in nanoseconds

	used  int64
	at    int64  // fixed: start of the open window; continuous: when used was brought up to date
	frac  int64  // continuous: what has drained beyond whole units, in units/per
	first uint64 // fixed: number of the first charge of the open window
	lows  []low  // continuous: see refundBucket
}

// low says that the bucket has held at least used whole units ever since the charge numbered from.
type low struct {
	from uint64
	used int64
}

// A bucket remembers up to fineLows lows as they come and further ones in steps of 1/coarseLows of its size.
const (
	fineLows   = 32
	coarseLows = 64
)

// clockSlack is how far a clock that goes back stops a bucket's refill. It must be longer than any reading of the clock
// may be late, or that would refill twice.
const clockSlack = int64(time.Minute)

// A period goes from one time until before another. The zero value is empty.
type period struct{ from, until int64 }

var always = period{math.MinInt64, math.MaxInt64}

func (p period) holds(now int64) bool { return p.from <= now && now < p.until }

// limit shortens the period to the time in which the window is what it is now unless something is charged or refunded:
// until its edge, or not at all for a bucket.
func (p *period) limit(w *window) {
	if w.rate > 0 {
		*p = period{}
	} else {
		p.from, p.until = max(p.from, w.at), min(p.until, satAdd(w.at, w.per))
	}
}

// advance brings the window to now and reports whether a fixed window was closed and a new one opened. next is the
// number that the next charge will have.
//
// A clock that goes back never gives capacity back. By up to one fixed window, or clockSlack for a bucket, the window
// simply lasts longer. Beyond that it moves to where the clock now is and keeps what was charged, so that it cannot be
// stuck for long.
func (w *window) advance(now int64, next uint64) bool {
	if w.rate > 0 {
		w.drain(now)
		return false
	}
	if now >= w.at && now-w.at < w.per {
		return false
	}
	start := floorTo(now, w.per)
	if start > w.at {
		w.at, w.used, w.first = start, 0, next
		return true
	}
	if w.at-start > w.per {
		w.at = start
	}
	return false
}

func (w *window) drain(now int64) {
	elapsed := now - w.at
	if elapsed <= 0 {
		if elapsed < -clockSlack {
			w.at = now
		}
		return
	}
	w.at = now
	if w.used == 0 {
		return
	}
	drained, frac := mulDiv(elapsed, w.rate, w.frac, w.per)
	if drained >= w.used {
		w.used, w.frac = 0, 0
	} else {
		w.used, w.frac = w.used-drained, frac
	}
	w.sink()
}

// fits reports whether n more units may be charged now. The window must be up to date.
func (w *window) fits(n int64) bool { return n == 0 || n <= w.max-w.used }

// fitsAt is the earliest time at which n units fit if nothing else is charged or refunded: math.MaxInt64 if never.
func (w *window) fitsAt(n int64) int64 {
	if w.fits(n) {
		return w.at
	}
	return w.fallsTo(w.max - n)
}

// fallsTo is the earliest time at which no more than level is used if nothing is charged or refunded: math.MaxInt64 if
// never.
func (w *window) fallsTo(level int64) int64 {
	switch {
	case w.used <= level:
		return w.at
	case level < 0:
		return math.MaxInt64
	case w.rate == 0:
		return satAdd(w.at, w.per)
	}
	wait, rest := mulDiv(w.used-level, w.per, -w.frac, w.rate)
	if rest > 0 {
		wait = satAdd(wait, 1)
	}
	return satAdd(w.at, wait)
}

// resetsAt is when the window will be empty if nothing else is charged.
func (w *window) resetsAt() int64 {
	if w.rate == 0 {
		return satAdd(w.at, w.per)
	}
	return w.fallsTo(0)
}

// charge adds n units, 0 or more, under the given number. It does not ask whether they fit: an excess must be charged
// too.
func (w *window) charge(n int64, number uint64) {
	w.used = min(w.used, math.MaxInt64-n) + n
	if w.rate > 0 && n > 0 {
		w.noteLow(number)
	}
}

// noteLow records what the bucket holds from the charge with the given number on.
func (w *window) noteLow(number uint64) {
	k := len(w.lows)
	if k < fineLows || k < fineLows+coarseLows && w.used-w.lows[k-1].used > w.max/coarseLows {
		w.lows = append(w.lows, low{number, w.held()})
	}
}

// held is what a bucket holds in whole units.
func (w *window) held() int64 {
	if w.frac > 0 {
		return w.used - 1
	}
	return w.used
}

// refund takes back up to n units of the charge with the given number and reports how many. In a fixed window that is all
// or nothing: all if the window of the charge is still open.
func (w *window) refund(n int64, number uint64) int64 {
	if w.rate > 0 {
		return w.refundBucket(n, number)
	}
	if number < w.first {
		return 0
	}
	n = max(0, min(n, w.used))
	w.used -= n
	return n
}

// refundBucket must not give back what time has already given back. Had the job been charged n less from the start, the
// bucket would have run full earlier, and the refill after that moment would have been lost. What would have been lost
// is exactly the part of n beyond the least that the bucket has held since the charge (the reflection of a queue's
// workload at zero, Lindley 1952). Without this, a job of 90 unused units that ends after the bucket has refilled would
// let a burst of nearly twice the bucket through. The least since each charge is kept in lows, in a bounded number of
// steps; a coarser step only makes the refund smaller.
func (w *window) refundBucket(n int64, number uint64) int64 {
	i := len(w.lows) - 1
	for i >= 0 && w.lows[i].from > number {
		i--
	}
	if i < 0 {
		return 0
	}
	n = max(0, min(n, w.lows[i].used))
	for j := i; j < len(w.lows); j++ {
		w.lows[j].used -= n
	}
	w.used -= n
	if w.used == 0 {
		w.frac = 0
	}
	w.sinkBelow(i)
	return n
}

// sink records what the bucket holds now, which may be the least so far.
func (w *window) sink() {
	i, held := len(w.lows), w.held()
	for i > 0 && w.lows[i-1].used >= held {
		i--
	}
	if i < len(w.lows) {
		w.lows[i].used = held
		w.lows = w.lows[:i+1]
	}
}

// sinkBelow restores the order of lows after those from i on have fallen: the least since an earlier charge cannot be
// more than the least since a later one.
func (w *window) sinkBelow(i int) {
	j := i
	for j > 0 && w.lows[j-1].used >= w.lows[i].used {
		j--
	}
	if j < i {
		w.lows[j].used = w.lows[i].used
		w.lows = append(w.lows[:j+1], w.lows[i+1:]...)
	}
}

// remaining is what may still be charged now; a debt shows as 0.
func (w *window) remaining() int64 { return max(w.max-w.used, 0) }

func (w *window) stats() WindowStats {
	return WindowStats{Used: w.used, Limit: w.max, Remaining: w.remaining(), ResetsAt: time.Unix(0, w.resetsAt())}
}

// mulDiv returns (a*b + c) / d and the remainder, for a, b >= 0, d > 0, and a*b + c >= 0, without overflow on the way.
// A quotient beyond int64 saturates.
func mulDiv(a, b, c, d int64) (quotient, remainder int64) {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	var carry uint64
	if c >= 0 {
		lo, carry = bits.Add64(lo, uint64(c), 0)
		hi += carry
	} else {
		lo, carry = bits.Sub64(lo, uint64(-c), 0)
		hi -= carry
	}
	if hi >= uint64(d) {
		return math.MaxInt64, 0
	}
	q, r := bits.Div64(hi, lo, uint64(d))
	if q > math.MaxInt64 {
		return math.MaxInt64, 0
	}
	return int64(q), int64(r)
}

// floorTo rounds t down to a multiple of per, towards the past also before the epoch.
func floorTo(t, per int64) int64 {
	r := t % per
	if r < 0 {
		r += per
	}
	if t < math.MinInt64+r {
		return math.MinInt64
	}
	return t - r
}

func satAdd(a, b int64) int64 {
	sum := a + b
	switch {
	case a > 0 && b > 0 && sum < 0:
		return math.MaxInt64
	case a < 0 && b < 0 && sum >= 0:
		return math.MinInt64
	}
	return sum
}
