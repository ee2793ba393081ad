package llmrate

// An attemptList holds attempts in no order, in blocks. A snapshot takes the blocks as they are and costs little however
// many attempts there are; whoever changes a block after that copies it first. The model's lock guards it.
type attemptList struct {
	blocks []*attemptBlock
	length int
	taken  uint64 // number of snapshots
}

const blockSize = 64

type attemptBlock struct {
	items [blockSize]*attempt
	since uint64 // snapshots that were taken before this copy was made: those may not see it change
}

func (l *attemptList) add(a *attempt) {
	i := l.length
	if i/blockSize == len(l.blocks) {
		l.blocks = append(l.blocks, &attemptBlock{since: l.taken})
	}
	l.length++
	l.set(i, a)
	a.slot = i
}

func (l *attemptList) remove(a *attempt) {
	l.length--
	last := l.blocks[l.length/blockSize].items[l.length%blockSize]
	if last != a {
		l.set(a.slot, last)
		last.slot = a.slot
	}
	l.set(l.length, nil)
}

func (l *attemptList) set(i int, a *attempt) {
	b := l.blocks[i/blockSize]
	if b.since != l.taken {
		copied := *b
		copied.since = l.taken
		b = &copied
		l.blocks[i/blockSize] = b
	}
	b.items[i%blockSize] = a
}

// snapshot appends the blocks in use to a list, to be read without the lock.
func (l *attemptList) snapshot(to []*attemptBlock) []*attemptBlock {
	l.taken++
	used := (l.length + blockSize - 1) / blockSize
	return append(to, l.blocks[:used]...)
}
