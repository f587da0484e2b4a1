package broker

import "time"

// NoticeID names a notice.
type NoticeID ID

func (id NoticeID) isKey() {}

// String is "ntc_" and the id's text.
func (id NoticeID) String() string { return encodeID("ntc_", id) }

// A Notice is something that a channel has to be told. It is written in the
// transaction that makes it true, and told at least once.
type Notice struct {
	ID       NoticeID
	Event    NoticeEvent
	Request  RequestID
	Group    string // why this channel is told
	Channel  string // as groups.yaml names it, "slack:dba"
	Created  time.Time
	Due      time.Time // when it is to be told, or tried again
	Attempts int
	Expires  time.Time // when trying is over

	Requester string // whose request it is
}

// Key gives the row's key.
func (n *Notice) Key() Key { return n.ID }

// Urgent says whether the notice is told before all that are not, and never
// dropped for their number.
func (n *Notice) Urgent() bool {
	switch n.Event {
	case NoticeGlass, NoticeReviewed, NoticeOverdue:
		return true
	}
	return false
}

// A NoticeQuery selects notices that were not told yet, of one channel: the
// urgent ones, or the others, that are due at Now, earliest first; or, of one
// requester, all that are not urgent, in the order of their ids.
type NoticeQuery struct {
	Channel   string
	Requester string
	Urgent    bool
	Now       time.Time
	Limit     int
}

// A Crowd is a requester that has much waiting for one channel.
type Crowd struct{ Channel, Requester string }

// A NoticeEvent is what a notice tells.
type NoticeEvent string

// The events.
const (
	NoticePending   NoticeEvent = "request.pending"   // somebody waits for the group
	NoticeEscalated NoticeEvent = "request.escalated" // somebody still waits; the group is told, and not asked
	NoticeApproved  NoticeEvent = "request.approved"
	NoticeDenied    NoticeEvent = "request.denied"
	NoticeWithdrawn NoticeEvent = "request.withdrawn"
	NoticeGlass     NoticeEvent = "break_glass.used" // it waits for the group's review
	NoticeReviewed  NoticeEvent = "break_glass.reviewed"
	NoticeOverdue   NoticeEvent = "break_glass.overdue"
)

// noticeFor is how long a notice is tried.
const noticeFor = 24 * time.Hour

// tell puts a notice for every channel of the groups, to be told at once.
func (b *Broker) tell(tx Tx, event NoticeEvent, r *Request, groups []string, rules *Rules, now time.Time) {
	b.tellAt(tx, event, r, groups, rules, now, now)
}

func (b *Broker) tellAt(tx Tx, event NoticeEvent, r *Request, groups []string, rules *Rules, due, now time.Time) {
	told := map[string]bool{}
	for _, group := range groups {
		for _, channel := range rules.Groups[group].Notify {
			if told[channel] {
				continue
			}
			told[channel] = true
			tx.Put(&Notice{
				ID: NoticeID(newID(now)), Event: event, Request: r.ID, Group: group, Channel: channel,
				Created: now, Due: due, Expires: due.Add(noticeFor), Requester: r.Requester.ID,
			})
		}
	}
}

// noticeOf is what to tell of a request that was settled.
func noticeOf(r *Request) NoticeEvent {
	if r.Status == RequestApproved {
		return NoticeApproved
	}
	return NoticeDenied
}

// Current says whether a notice still has to be told: nobody wants to be asked
// about what is decided.
func (n *Notice) Current(r *Request, now time.Time) bool {
	switch n.Event {
	case NoticePending, NoticeEscalated:
		return r.State(now) == RequestPending
	case NoticeOverdue:
		return r.Reviewed.IsZero()
	}
	return true
}
