package provider

import (
	"math"
	"time"
)

// Limit is one quota of a model: Max units per Per. The zero Limit does not limit.
//
// Providers differ in how a quota comes back. OpenAI refills continuously: the bucket holds Max and gains Max/Per all the
// time. Azure counts tokens in fixed slices, here aligned to the Unix epoch, and starts each at zero.
type Limit struct {
	Max        int64
	Per        time.Duration
	Continuous bool
}

// allowed is the most that the limit lets through from first to last.
func (l Limit) allowed(first, last time.Time) float64 {
	if l.Continuous {
		return float64(l.Max) * (1 + float64(last.Sub(first))/float64(l.Per))
	}
	return float64(l.Max) * float64(l.slice(last)-l.slice(first)+1)
}

func (l Limit) slice(t time.Time) int64 { return t.UnixNano() / int64(l.Per) }

// window is what has been used of a Limit. The server's lock guards it.
type window struct {
	Limit
	used float64
	at   time.Time // when used was brought up to date
}

func (w *window) advance(now time.Time) {
	switch {
	case w.Max == 0:
	case w.Continuous:
		w.used = max(0, w.used-float64(now.Sub(w.at))*float64(w.Max)/float64(w.Per))
	case w.slice(now) != w.slice(w.at):
		w.used = 0
	}
	w.at = now
}

// wait says how long it takes until n more units fit if nobody else comes; 0: they fit now.
func (w *window) wait(n int64) time.Duration {
	excess := w.used + float64(n) - float64(w.Max)
	switch {
	case w.Max == 0 || excess <= 0:
		return 0
	case w.Continuous:
		return w.drain(excess)
	}
	return w.untilEdge()
}

// reset says how long it takes until the window is as good as new: the x-ratelimit-reset headers.
func (w *window) reset() time.Duration {
	switch {
	case w.Max == 0 || w.used <= 0:
		return 0
	case w.Continuous:
		return w.drain(w.used)
	}
	return w.untilEdge()
}

func (w *window) drain(units float64) time.Duration {
	return time.Duration(math.Ceil(units * float64(w.Per) / float64(w.Max)))
}

func (w *window) untilEdge() time.Duration {
	return w.Per - time.Duration(w.at.UnixNano()%int64(w.Per))
}

func (w *window) remaining() int64 { return max(0, w.Max-int64(math.Ceil(w.used))) }

// spend charges n units that were found to fit.
func (w *window) spend(n int64) { w.used += float64(n) }

// penalise charges what is left of n units: a refused request counts, but nobody runs into debt by knocking.
func (w *window) penalise(n int64) { w.used = max(w.used, min(w.used+float64(n), float64(w.Max))) }

// settle replaces a charge made at time then by what was really used.
func (w *window) settle(then time.Time, reserved, actual int64) {
	if w.Max == 0 || !w.Continuous && w.slice(then) != w.slice(w.at) {
		return // the slice that was charged is over
	}
	w.used = max(0, w.used-float64(reserved)+float64(actual))
}
