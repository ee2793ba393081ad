package llmrate

// A waitQueue holds the attempts of one job type that wait for one model, in the order in which they arrived. It is an
// intrusive list, so that a cancelled attempt leaves it in O(1). The model's lock guards it.
type waitQueue struct {
	head, tail *attempt
	length     int
}

// insert puts a at the place that its arrival gives it: at the end, unless it was in the queue before.
func (q *waitQueue) insert(a *attempt) {
	before := q.tail
	if before != nil && before.arrival > a.arrival {
		before = nil
		for next := q.head; next.arrival < a.arrival; next = next.next {
			before = next
		}
	}
	q.insertAfter(before, a)
}

// insertAfter puts a behind before, or at the head if before is nil.
func (q *waitQueue) insertAfter(before, a *attempt) {
	a.prev, a.next = before, q.head
	if before != nil {
		a.next = before.next
		before.next = a
	} else {
		q.head = a
	}
	if a.next != nil {
		a.next.prev = a
	} else {
		q.tail = a
	}
	q.length++
}

func (q *waitQueue) remove(a *attempt) {
	if a.prev != nil {
		a.prev.next = a.next
	} else {
		q.head = a.next
	}
	if a.next != nil {
		a.next.prev = a.prev
	} else {
		q.tail = a.prev
	}
	a.prev, a.next = nil, nil
	q.length--
}
