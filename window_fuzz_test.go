package llmrate

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"testing"
	"time"
)

// The fuzz targets of this file compare the arithmetic with slow models in math/big that are obviously right. Run one
// with, for example,
//
//	go test -run '^$' -fuzz '^FuzzBucket$' -fuzztime 1m .

func FuzzMulDiv(f *testing.F) {
	for _, v := range [][4]int64{
		{0, 0, 0, 1}, {1, 1, -1, 1}, {7, 3, 2, 5}, {7, 3, -20, 5},
		{math.MaxInt64, math.MaxInt64, 0, 1}, {math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64},
		{math.MaxInt64, 1, math.MaxInt64, 1}, {math.MaxInt64, 1, 0, 1}, {math.MaxInt64, 2, math.MinInt64, 1},
		{MaxAmount, aMinute, -aMinute + 1, MaxAmount}, {366 * aDay, MaxAmount, 366*aDay - 1, 366 * aDay},
		{1, math.MaxInt64, math.MinInt64 + 1, 3},
		{1 << 32, 1<<32 - 1, 1<<32 + 5, 1 << 40}, // a carry out of the low word
		{1 << 32, 1 << 32, -1, 1 << 40},          // and a borrow
	} {
		f.Add(v[0], v[1], v[2], v[3])
	}
	f.Fuzz(func(t *testing.T, a, b, c, d int64) {
		sum := new(big.Int).Mul(big.NewInt(a), big.NewInt(b))
		sum.Add(sum, big.NewInt(c))
		if a < 0 || b < 0 || d <= 0 || sum.Sign() < 0 {
			t.Skip("outside the domain")
		}
		q, r := new(big.Int).QuoRem(sum, big.NewInt(d), new(big.Int))
		if !q.IsInt64() {
			q, r = big.NewInt(math.MaxInt64), new(big.Int)
		}
		gotQ, gotR := mulDiv(a, b, c, d)
		if gotQ != q.Int64() || gotR != r.Int64() {
			t.Errorf("mulDiv(%d, %d, %d, %d) = %d, %d, want %s, %s", a, b, c, d, gotQ, gotR, q, r)
		}
	})
}

func FuzzFloorTo(f *testing.F) {
	for _, x := range []int64{0, 1, -1, aMinute, -aMinute, aMinute - 1, unixMinute + 1, math.MaxInt64, math.MinInt64, math.MinInt64 + 1} {
		for _, per := range []int64{1, 7, int64(time.Millisecond), aMinute, aDay, math.MaxInt64} {
			f.Add(x, per)
		}
	}
	f.Fuzz(func(t *testing.T, x, per int64) {
		if per <= 0 {
			t.Skip("outside the domain")
		}
		if got, want := floorTo(x, per), clamp(floorBig(x, per)); got != want {
			t.Errorf("floorTo(%d, %d) = %d, want %d", x, per, got, want)
		}
	})
}

func FuzzSatAdd(f *testing.F) {
	for _, a := range []int64{0, 1, -1, math.MaxInt64, math.MinInt64, math.MaxInt64 / 2, math.MinInt64 / 2} {
		for _, b := range []int64{0, 1, -1, math.MaxInt64, math.MinInt64, math.MaxInt64/2 + 1, math.MinInt64/2 - 1} {
			f.Add(a, b)
		}
	}
	f.Fuzz(func(t *testing.T, a, b int64) {
		if got, want := satAdd(a, b), clamp(new(big.Int).Add(big.NewInt(a), big.NewInt(b))); got != want {
			t.Errorf("satAdd(%d, %d) = %d, want %d", a, b, got, want)
		}
	})
}

func clamp(n *big.Int) int64 {
	switch {
	case n.IsInt64():
		return n.Int64()
	case n.Sign() < 0:
		return math.MinInt64
	}
	return math.MaxInt64
}

// floorBig is the largest multiple of per that is at most x.
func floorBig(x, per int64) *big.Int {
	// Euclidean division is the floor for a positive divisor.
	q := new(big.Int).Div(big.NewInt(x), big.NewInt(per))
	return q.Mul(q, big.NewInt(per))
}

// A windowScript turns fuzz input into charges, refunds and movements of the clock.
type windowScript struct {
	t    *testing.T
	data []byte
	per  int64
	max  int64
	now  int64
	log  []string // what was done, for the message of a failure
}

// farthest from the epoch that a script moves the clock: some 73 years. time.Time.UnixNano itself ends at 292.
const farthest = math.MaxInt64 / 4

func newWindowScript(t *testing.T, limit, per, start int64, data []byte) *windowScript {
	return &windowScript{
		t: t, data: data, max: within(limit, 1, MaxAmount), per: within(per, 1, 366*aDay), now: within(start, -farthest, farthest),
	}
}

// within maps n into the range from low to high and leaves it alone if it is there already.
func within(n, low, high int64) int64 {
	if n >= low && n <= high {
		return n
	}
	size := new(big.Int).Add(new(big.Int).Sub(big.NewInt(high), big.NewInt(low)), big.NewInt(1))
	m := new(big.Int).Mod(big.NewInt(n), size)
	return low + m.Int64()
}

func (s *windowScript) more() bool { return len(s.data) >= 3 && len(s.log) < 200 }

// next is the next step: its kind and a number.
func (s *windowScript) next() (kind byte, x int64) {
	kind, x = s.data[0], int64(binary.LittleEndian.Uint16(s.data[1:]))
	s.data = s.data[3:]
	return kind, x
}

// move moves the clock by one of many distances that matter.
func (s *windowScript) move(kind byte, x int64) {
	to := big.NewInt(s.now)
	add := func(n int64, times int64) {
		to.Add(to, new(big.Int).Mul(big.NewInt(n), big.NewInt(times)))
	}
	switch kind % 12 {
	case 0: // a part of the window
		add(s.per/1000+1, x%1000)
	case 1:
		add(1, x)
	case 2: // windows
		add(s.per, x%5)
	case 3: // to the edge of a window, and one to each side of it
		edge := floorBig(s.now, s.per)
		to.Add(edge, big.NewInt(s.per))
		add(1, x%3-1)
	case 4: // very far
		add(s.per, x)
		add(aDay, x)
	case 5: // back
		add(-1, x)
	case 6:
		add(-(s.per/1000 + 1), x%1000)
	case 7: // by windows, and one to each side of it
		add(-s.per, x%4)
		add(1, x/4%3-1)
	case 8: // very far back
		add(-s.per, x)
		add(-aDay, x)
	default: // odd, forward
		add(7_777_777, x)
	}
	s.now = clamp(to)
	s.now = min(max(s.now, -farthest), farthest)
	s.logf("now %d", s.now)
}

// amount is a number of units that may be of interest.
func (s *windowScript) amount(kind byte, x int64) int64 {
	switch kind % 6 {
	case 0:
		return x % 4
	case 1:
		return min(x, MaxAmount)
	case 2:
		return s.max/7 + x%2
	case 3:
		return s.max - s.max/64*min(x%8, 1)
	case 4:
		return min(s.max/1000*(x%100)+1, MaxAmount)
	}
	return max(1, s.max>>(x%46))
}

func (s *windowScript) logf(format string, args ...any) {
	s.log = append(s.log, fmt.Sprintf(format, args...))
}

func (s *windowScript) failf(w *window, format string, args ...any) {
	s.t.Helper()
	for i, line := range s.log {
		s.t.Logf("%3d %s", i, line)
	}
	s.t.Fatalf("%s\nwindow %+v", fmt.Sprintf(format, args...), *w)
}

// modelCharge is one charge as the models remember it.
type modelCharge struct {
	number uint64
	amount int64 // less what was refunded
	window int   // fixed: which window it went to
	at     *big.Int
}

func FuzzFixedWindow(f *testing.F) {
	f.Add(int64(10), aMinute, int64(0), []byte{0, 5, 0, 60, 1, 0, 120, 3, 0, 0, 7, 0, 120, 4, 0})
	f.Add(int64(1), int64(7), int64(-20), []byte("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
	f.Add(int64(MaxAmount), aDay, unixMinute, []byte("\x00\xff\xff\x10\xff\xff\x43\x00\x00\x43\x01\x00\x43\x02\x00\x80\xff\xff\x02\x00\x00\x90\x01\x00"))
	f.Add(int64(500_000), aMinute, unixMinute+59*aSecond, []byte("\x01\x00\x10\x47\x05\x00\x81\x00\x10\x48\x09\x00\x01\x00\x20\x43\x00\x00\xc0\x01\x00"))
	f.Add(int64(3), int64(10*time.Second), int64(math.MinInt64), []byte("\x44\xff\xff\x00\x01\x00\x48\xff\xff\x01\x02\x00\x47\x04\x00\xc3\x03\x00\x43\x00\x00"))
	f.Fuzz(func(t *testing.T, limit, per, start int64, data []byte) {
		s := newWindowScript(t, limit, per, start, data)
		w := &window{max: s.max, per: s.per}

		// The model: every charge with the window it went to, by a count of the windows that were opened.
		open, at := 0, big.NewInt(0)
		var charges []modelCharge
		number, exact := uint64(0), true
		advance := func() {
			began := floorBig(s.now, s.per)
			closes := began.Cmp(at) > 0
			if closes {
				open++
			}
			// The clock went back: by no more than a period, the window simply stays open.
			if late := new(big.Int).Sub(at, began); closes || late.Cmp(big.NewInt(s.per)) > 0 {
				at = began
			}
			if got := w.advance(s.now, number+1); got != closes {
				s.failf(w, "advance reports %t, want %t", got, closes)
			}
		}
		advance()
		for s.more() {
			kind, x := s.next()
			advance()
			switch kind / 64 {
			case 0:
				number++
				n := s.amount(kind, x)
				s.logf("charge %d as %d", n, number)
				w.charge(n, number)
				charges = append(charges, modelCharge{number: number, amount: n, window: open})
			case 1:
				s.move(kind, x)
				advance()
			case 2: // a refund as the limiter makes it
				if len(charges) == 0 {
					continue
				}
				c := &charges[int(x)%len(charges)]
				n := min(s.amount(kind, x), c.amount)
				want := int64(0)
				if c.window == open {
					want = n
				}
				s.logf("refund %d of %d", n, c.number)
				if got := w.refund(n, c.number); exact && got != want {
					s.failf(w, "refunded %d, want %d", got, want)
				}
				c.amount -= want
			case 3: // a refund of something that was never charged
				n, of := s.amount(kind, x)-1, uint64(x)
				before := w.used
				s.logf("wrong refund %d of %d", n, of)
				got := w.refund(n, of)
				if got < 0 || got > max(n, 0) || w.used != before-got {
					s.failf(w, "a wrong refund gave %d and moved used from %d to %d", got, before, w.used)
				}
				exact = exact && got == 0
			}
			if w.used < 0 || w.remaining() < 0 || w.remaining() > s.max {
				s.failf(w, "out of range")
			}
			if w.at != at.Int64() {
				s.failf(w, "the open window begins at %d, want %s", w.at, at)
			}
			used := int64(0) // at most 200 * MaxAmount
			for _, c := range charges {
				if c.window == open {
					used += c.amount
				}
			}
			if exact && w.used != used {
				s.failf(w, "used %d, want %d", w.used, used)
			}
			n := s.amount(kind, x+1)
			fits := n == 0 || n <= s.max-w.used
			if w.fits(n) != fits {
				s.failf(w, "fits(%d) is %t", n, !fits)
			}
			wantAt := clamp(new(big.Int).Add(at, big.NewInt(s.per)))
			switch {
			case fits:
				wantAt = w.at
			case n > s.max:
				wantAt = math.MaxInt64
			}
			if got := w.fitsAt(n); got != wantAt {
				s.failf(w, "fitsAt(%d) is %d, want %d", n, got, wantAt)
			}
			if !fits && n <= s.max {
				later := *w
				later.advance(wantAt, number+1)
				if !later.fits(n) {
					s.failf(w, "does not fit at fitsAt")
				}
			}
		}
	})
}

// FuzzBucket compares a bucket with an exact replay of all its charges, each reduced at the time at which it was made
// by what was refunded later: what a bucket would hold if every job's usage had been known from the start. The bucket
// must never lack less, and while few charges are open no more than a unit more: refunds are in whole units, while what
// time has given back is not.
func FuzzBucket(f *testing.F) {
	f.Add(int64(100), int64(100), aMinute, int64(0), []byte{1, 90, 0, 64, 244, 1, 1, 50, 0, 129, 0, 0})
	f.Add(int64(10), int64(7), int64(1_000_003), int64(5), []byte("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
	f.Add(int64(MaxAmount), int64(MaxAmount), aMinute, unixMinute, []byte("\x03\x00\x00\x42\x01\x00\x03\x00\x00\x83\x00\x00\x43\x00\x00\x83\x01\x00\x48\xff\x00\x03\x01\x00"))
	f.Add(int64(1), int64(1), 366*aDay, unixMinute, []byte("\x00\x01\x00\x44\x01\x00\x00\x01\x00\x80\x01\x00\x45\x09\x00\x00\x02\x00"))
	f.Add(int64(40), int64(997), aMinute, unixMinute, []byte("\x01\x0a\x00\x40\x5f\x00\x01\x14\x00\x81\x00\x00\x40\x05\x00\x40\x06\x00\x81\x01\x00\x49\x01\x00"))
	var many []byte
	for range 25 { // more charges than a bucket remembers exactly
		many = append(many, 0, 2, 0, 0, 3, 0, 0, 2, 0, 0, 1, 0, 0x41, 3, 0)
	}
	for i := range byte(35) {
		many = append(many, 0x80, 3*i, 0, 0x49, 1, 0)
	}
	f.Add(int64(1000), int64(1000), aMinute, unixMinute, many)
	f.Fuzz(func(t *testing.T, limit, rate, per, start int64, data []byte) {
		s := newWindowScript(t, limit, per, start, data)
		w := &window{max: s.max, rate: within(rate, 1, MaxAmount), per: s.per}

		// The model's clock stands still while the real one is back, by clockSlack at most.
		elapsed, seen := new(big.Int), big.NewInt(0)
		var charges []modelCharge
		number, sinceEmpty, exact := uint64(0), 0, true
		advance := func() {
			step := new(big.Int).Sub(big.NewInt(s.now), seen)
			if step.Sign() > 0 {
				elapsed = new(big.Int).Add(elapsed, step)
			}
			if step.Sign() > 0 || step.Neg(step).Cmp(big.NewInt(clockSlack)) > 0 {
				seen = big.NewInt(s.now)
			}
			if w.advance(s.now, number+1) {
				s.failf(w, "a bucket has no edges")
			}
		}
		// replay is what the bucket lacks, in units/per.
		replay := func() *big.Int {
			lacks, last := new(big.Int), new(big.Int)
			drainTo := func(at *big.Int) {
				drained := new(big.Int).Sub(at, last)
				lacks.Sub(lacks, drained.Mul(drained, big.NewInt(w.rate)))
				if lacks.Sign() < 0 {
					lacks.SetInt64(0)
				}
				last = at
			}
			for _, c := range charges {
				drainTo(c.at)
				lacks.Add(lacks, new(big.Int).Mul(big.NewInt(c.amount), big.NewInt(s.per)))
			}
			drainTo(elapsed)
			return lacks
		}
		advance()
		for s.more() {
			kind, x := s.next()
			advance()
			switch kind / 64 {
			case 0:
				number++
				n := s.amount(kind, x)
				s.logf("charge %d as %d", n, number)
				w.charge(n, number)
				charges = append(charges, modelCharge{number: number, amount: n, at: elapsed})
				sinceEmpty++
			case 1:
				s.move(kind, x)
				advance()
			case 2:
				if len(charges) == 0 {
					continue
				}
				c := &charges[int(x)%len(charges)]
				n := min(s.amount(kind, x), c.amount)
				before := w.used
				s.logf("refund %d of %d", n, c.number)
				if got := w.refund(n, c.number); got < 0 || got > n || w.used > before || w.used < before-n {
					s.failf(w, "refunded %d of %d, used from %d to %d", got, n, before, w.used)
				}
				c.amount -= n
			case 3: // a refund of something that was never charged, once, for the script's model knows nothing of it
				n, of := s.amount(kind, x)-1, uint64(x)
				before := w.used
				s.logf("wrong refund %d of %d", n, of)
				got := w.refund(n, of)
				if got < 0 || got > max(n, 0) || w.used > before || w.used < 0 {
					s.failf(w, "a wrong refund gave %d and moved used from %d to %d", got, before, w.used)
				}
				exact = exact && got == 0
			}
			if w.used < 0 || w.remaining() < 0 || w.remaining() > s.max || w.frac < 0 || w.frac >= s.per {
				s.failf(w, "out of range")
			}
			if len(w.lows) > fineLows+coarseLows {
				s.failf(w, "%d lows", len(w.lows))
			}
			if w.used == 0 {
				sinceEmpty = 0
			}
			// What the bucket lacks, exactly.
			lacks := new(big.Int).Mul(big.NewInt(w.used), big.NewInt(s.per))
			lacks.Sub(lacks, big.NewInt(w.frac))
			if exact {
				want := replay()
				switch more := new(big.Int).Sub(lacks, want); {
				case more.Sign() < 0:
					s.failf(w, "gives back more than the truth: lacks %s/%d, the exact replay %s/%d", lacks, s.per, want, s.per)
				case sinceEmpty < fineLows-1 && more.Cmp(big.NewInt(s.per)) >= 0:
					s.failf(w, "lacks %s/%d, the exact replay %s/%d, and only %d charges are open", lacks, s.per, want, s.per, sinceEmpty)
				}
			}

			n := s.amount(kind, x+1)
			fits := n == 0 || n <= s.max-w.used
			if w.fits(n) != fits {
				s.failf(w, "fits(%d) is %t", n, !fits)
			}
			wantAt := int64(math.MaxInt64)
			switch {
			case fits:
				wantAt = w.at
			case n <= s.max:
				missing := new(big.Int).Sub(lacks, new(big.Int).Mul(big.NewInt(s.max-n), big.NewInt(s.per)))
				missing.Add(missing, big.NewInt(w.rate-1)).Div(missing, big.NewInt(w.rate))
				wait := clamp(missing) // 292 years will do
				wantAt = clamp(missing.Add(big.NewInt(wait), big.NewInt(w.at)))
			}
			if got := w.fitsAt(n); got != wantAt {
				s.failf(w, "fitsAt(%d) is %d, want %d", n, got, wantAt)
			}
		}
	})
}

// shareScript turns fuzz input into ratios and loads.
type shareScript struct{ data []byte }

func (s *shareScript) byte() byte {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return b
}

func (s *shareScript) uint32() uint32 {
	return uint32(s.byte()) | uint32(s.byte())<<8 | uint32(s.byte())<<16 | uint32(s.byte())<<24
}

// ratios draws configured ratios that Validate accepts: some may be unset, and the sum is at most 1.
func (s *shareScript) ratios() []float64 {
	configured := make([]float64, 1+int(s.byte())%7)
	style := s.byte() % 4
	left, unset := 1.0, 0
	for i := range configured {
		r := 0.0
		switch style {
		case 0: // tenths
			r = float64(s.byte()%5) / 10
		case 1: // anything
			r = float64(s.uint32()) / math.MaxUint32
		case 2: // tiny
			r = float64(s.byte()) / 1e6
		}
		if r > left-1e-6 {
			r = 0
		}
		configured[i] = r
		left -= r
		if r == 0 {
			unset++
		}
	}
	return configured
}

func FuzzInitialRatios(f *testing.F) {
	f.Add([]byte{5, 0, 3, 4, 0, 0, 0})
	f.Add([]byte{1, 3})
	f.Add([]byte{6, 1, 0, 0, 0, 64, 0, 0, 0, 32, 1, 2, 3, 4, 9, 9, 9, 9})
	f.Add([]byte{7, 2, 1, 2, 3, 0, 0, 6, 7})
	f.Fuzz(func(t *testing.T, data []byte) {
		configured := (&shareScript{data}).ratios()
		ratios := initialRatios(configured)
		sum, configuredSum, unset := 0.0, 0.0, -1
		for i, r := range ratios {
			sum += r
			configuredSum += configured[i]
			switch {
			case math.IsNaN(r) || r <= 0 || r > 1:
				t.Fatalf("%v: ratio %d is %g", configured, i, r)
			case configured[i] != 0 && r != configured[i]:
				t.Fatalf("%v: ratio %d was configured and is now %g", configured, i, r)
			case configured[i] == 0 && unset >= 0 && r != ratios[unset]:
				t.Fatalf("%v: unset ratios differ: %v", configured, ratios)
			case configured[i] == 0:
				unset = i
			}
		}
		want := configuredSum
		if unset >= 0 {
			want = 1
		}
		if math.Abs(sum-want) > ratioTolerance {
			t.Fatalf("%v: the sum is %g, want %g", configured, sum, want)
		}
	})
}

func FuzzRebalance(f *testing.F) {
	f.Add([]byte{3, 3, 0, 97, 15, 15, 0, 0, 0})
	f.Add([]byte{3, 0, 0, 0, 3, 95, 17, 33, 0, 0, 1})
	f.Add([]byte{2, 3, 0, 255, 0})
	f.Add([]byte{7, 1, 9, 9, 9, 9, 8, 8, 8, 8, 7, 7, 7, 7, 90, 80, 10, 20, 30, 0, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &shareScript{data}
		ratios := initialRatios(s.ratios())
		cfg := RatioConfig{}.withDefaults()
		if s.byte()%2 == 1 {
			cfg.LowLoad = float64(s.byte()%101) / 100
			cfg.HighLoad = cfg.LowLoad + (1-cfg.LowLoad)*float64(s.byte()%101)/100
			cfg.MaxChange = float64(s.byte()%101) / 100
			cfg.MinRatio = float64(s.byte()%101) / 100
			cfg = cfg.withDefaults()
		}
		if cfg.LowLoad > cfg.HighLoad {
			t.Skip("Validate refuses it")
		}
		types := make([]*jobType, len(ratios))
		for i := range types {
			types[i] = &jobType{index: i, fixed: s.byte()%4 == 3}
		}
		for cycle := range 12 {
			loads := make([]float64, len(ratios))
			for i := range loads {
				loads[i] = float64(s.byte()) / 100
				if loads[i] == 2.55 {
					loads[i] = math.Inf(1)
				}
			}
			before := append([]float64(nil), ratios...)
			next, changed := rebalance(ratios, loads, types, cfg)
			sum, sumBefore, moved, donors, receivers := 0.0, 0.0, false, 0, 0
			for i := range next {
				if ratios[i] != before[i] {
					t.Fatalf("cycle %d: rebalance wrote into its argument", cycle)
				}
				sum += next[i]
				sumBefore += before[i]
				change := next[i] - before[i]
				moved = moved || change != 0
				low, high := loads[i] < cfg.LowLoad, loads[i] > cfg.HighLoad
				if !types[i].fixed && low && before[i] > cfg.MinRatio+ratioTolerance {
					donors++
				}
				if !types[i].fixed && high && !low {
					receivers++
				}
				switch {
				case math.IsNaN(next[i]) || next[i] < 0 || next[i] > 1+ratioTolerance:
					t.Fatalf("cycle %d: ratio %d is %g", cycle, i, next[i])
				case math.Abs(change) > cfg.MaxChange+ratioTolerance:
					t.Fatalf("cycle %d: ratio %d changes by %g, more than %g", cycle, i, change, cfg.MaxChange)
				case types[i].fixed && change != 0:
					t.Fatalf("cycle %d: fixed ratio %d changes by %g", cycle, i, change)
				case !low && !high && change != 0:
					t.Fatalf("cycle %d: ratio %d changes by %g at a load of %g", cycle, i, change, loads[i])
				case low && change > 0, high && !low && change < 0:
					t.Fatalf("cycle %d: ratio %d changes by %g at a load of %g", cycle, i, change, loads[i])
				case next[i] < min(cfg.MinRatio, before[i])-ratioTolerance:
					t.Fatalf("cycle %d: ratio %d falls to %g, below the smallest ratio %g", cycle, i, next[i], cfg.MinRatio)
				}
			}
			if math.Abs(sum-sumBefore) > ratioTolerance {
				t.Fatalf("cycle %d: the sum goes from %g to %g", cycle, sumBefore, sum)
			}
			if moved != changed {
				t.Fatalf("cycle %d: reports %t: %v to %v", cycle, changed, before, next)
			}
			if changed && (donors == 0 || receivers == 0) {
				t.Fatalf("cycle %d: changed without a donor or a receiver", cycle)
			}
			ratios = next
		}
	})
}

// FuzzShares compares budgets, slots and loads with exact rational numbers.
func FuzzShares(f *testing.F) {
	f.Add([]byte{2, 0, 3, 4, 1, 2}, int64(250_000), int64(10_000), int64(0), int64(100), int64(100<<20), int64(10<<20))
	f.Add([]byte{1, 3}, int64(10), int64(1), int64(3), int64(1), int64(0), int64(0))
	f.Add([]byte{3, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 7}, int64(MaxAmount), int64(7), int64(MaxAmount), int64(MaxAmount), int64(1<<40), int64(1))
	f.Add([]byte{4, 3, 0, 5}, int64(10), int64(100), int64(25), int64(0), int64(1), int64(1))
	f.Fuzz(func(t *testing.T, data []byte, limit, need, charged, concurrent, memory, perJob int64) {
		s := &shareScript{data}
		configured := s.ratios()
		limit, need, charged = within(limit, 1, MaxAmount), within(need, 0, MaxAmount), within(charged, 0, MaxAmount)
		concurrent, memory, perJob = within(concurrent, 0, MaxAmount), within(memory, 0, MaxAmount), within(perJob, 0, MaxAmount)
		cfg := Config[string]{
			Models: []ModelConfig[string]{{
				ID: "m", Limits: Limits{TokensPerMinute: limit, MaxConcurrent: concurrent},
				MinCapacity: int(s.byte() % 4), MaxCapacity: int(s.byte() % 8),
			}},
			JobTypes: map[string]JobType[string]{},
			Memory:   MemoryConfig{Limit: cmp.Or(memory, 1), Share: 1},
		}
		m := &cfg.Models[0]
		if m.MaxCapacity > 0 {
			m.MinCapacity = min(m.MinCapacity, m.MaxCapacity)
		}
		if s.byte()%2 == 1 {
			m.Limits.Refill = Continuous
		}
		for i, r := range configured {
			cfg.JobTypes[fmt.Sprintf("t%d", i)] = JobType[string]{EstimatedTokens: need, Ratio: r, EstimatedMemory: perJob}
		}
		l, err := New(t.Context(), cfg)
		if err != nil {
			t.Skip(err)
		}
		p := l.core.pools[0]
		g := l.core.memory
		if memory == 0 {
			g.budget = 0 // the process itself has taken everything: possible where the limit is detected
		}
		dim := &p.dims[0]
		dim.used = charged
		exact := func(ratio float64, capacity, n int64) *big.Rat {
			b := new(big.Rat).SetFloat64(ratio)
			b.Mul(b, new(big.Rat).SetInt64(capacity))
			if n > 0 && m.MinCapacity > 0 {
				b = ratMax(b, new(big.Rat).SetInt(new(big.Int).Mul(big.NewInt(int64(m.MinCapacity)), big.NewInt(n))))
			}
			if n > 0 && m.MaxCapacity > 0 {
				if most := new(big.Rat).SetInt(new(big.Int).Mul(big.NewInt(int64(m.MaxCapacity)), big.NewInt(n))); b.Cmp(most) > 0 {
					b = most
				}
			}
			return b
		}
		sum := 0.0
		for i := range p.shares {
			sh := &p.shares[i]
			ratio := sh.ratio
			if len(p.shares) == 1 {
				ratio = 1 // DESIGN 3.8: a single job type's share never binds before the model does
			}
			sh.windows[0].used = charged / int64(len(p.shares))
			sh.inFlight = int64(s.byte() % 16)
			g.parts[i].used = int64(s.byte()%16) * perJob
			type bound struct {
				budget *big.Rat
				used   float64
				per    int64
			}
			var bounds []bound
			if perJob > 0 {
				bounds = append(bounds, bound{exact(ratio, g.budget, perJob), float64(g.parts[i].used), perJob})
			}
			if concurrent > 0 {
				bounds = append(bounds, bound{exact(ratio, concurrent, 1), float64(sh.inFlight), 1})
			} else if m.MaxCapacity > 0 {
				bounds = append(bounds, bound{new(big.Rat).SetInt64(int64(m.MaxCapacity)), float64(sh.inFlight), 1})
			}
			if need > 0 {
				bounds = append(bounds, bound{exact(ratio, limit, need), float64(sh.windows[0].used), need})
			}

			budget := p.budget(sh, 0)
			if want, _ := exact(ratio, limit, need).Float64(); math.Abs(budget-want) > want*1e-12 {
				t.Fatalf("type %d: budget %g, want %g", i, budget, want)
			}
			sum += budget

			slots, load := p.slots(sh)
			if math.IsNaN(load) || load < 0 || math.IsNaN(slots) {
				t.Fatalf("type %d: slots %g, load %g", i, slots, load)
			}
			// A float64 is exact to some 16 digits, so that a budget of that many may be on the other side of a whole slot.
			low, high := math.Inf(1), math.Inf(1)
			for _, b := range bounds {
				quotient := new(big.Rat).Quo(b.budget, new(big.Rat).SetInt64(b.per))
				low = min(low, floorRat(new(big.Rat).Mul(quotient, big.NewRat(1e15-1, 1e15))))
				high = min(high, floorRat(new(big.Rat).Mul(quotient, big.NewRat(1e15+1, 1e15))))
			}
			if need <= limit && perJob <= cfg.Memory.Limit {
				low, high = max(low, 1), max(high, 1) // whoever has nothing charged may start one job
			}
			if slots < low || slots > high {
				t.Fatalf("type %d: %g slots, want %g to %g", i, slots, low, high)
			}
			plausible := len(bounds) == 0 && load == 0
			for _, b := range bounds {
				if budget, _ := b.budget.Float64(); math.Abs(load-b.used/max(budget, 1)) <= 1e-9*(1+load) {
					plausible = true
				}
			}
			if !plausible {
				t.Fatalf("type %d: a load of %g is that of no dimension", i, load)
			}
		}
		if len(p.shares) > 1 && m.MinCapacity == 0 && sum > float64(limit)*(1+1e-6) {
			t.Fatalf("the shares sum to %g of %d", sum, limit)
		}
	})
}

func ratMax(a, b *big.Rat) *big.Rat {
	if a.Cmp(b) > 0 {
		return a
	}
	return b
}

// floorRat rounds down, but takes what is less than ratioTolerance below a whole number for that number.
func floorRat(x *big.Rat) float64 {
	x = new(big.Rat).Add(x, new(big.Rat).SetFloat64(ratioTolerance))
	n, _ := new(big.Float).SetInt(new(big.Int).Div(x.Num(), x.Denom())).Float64()
	return n
}
