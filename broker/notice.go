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

	// What goes to one person. Counts is when their new passkey does.
	Person  string
	Address string // empty: the one that their account has when they are told
	Counts  time.Time
}

// PeopleChannel is the channel by which people are told of what concerns them
// alone. Its Notifier sends mail to the notice's Address.
const PeopleChannel = "people"

// Key gives the row's key.
func (n *Notice) Key() Key { return n.ID }

// Urgent says whether the notice is told before all that are not, and never
// dropped for their number.
func (n *Notice) Urgent() bool {
	switch n.Event {
	case NoticeGlass, NoticeReviewed, NoticeOverdue, NoticePasskey:
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
	NoticePasskey   NoticeEvent = "passkey.enrolled" // of no request: a person has a new passkey
)

// noticeFor is how long a notice is tried.
const noticeFor = 24 * time.Hour

// tell puts a notice for every channel of the groups, to be told at once.
func (b *Broker) tell(tx Tx, event NoticeEvent, r *Request, groups []string, rules *Rules, now time.Time) {
	b.tellAt(tx, event, r, groups, rules, now, now)
}

func (b *Broker) tellAt(tx Tx, event NoticeEvent, r *Request, groups []string, rules *Rules, due, now time.Time) {
	told := map[string]bool{}
	put := func(group, channel, person string) {
		tx.Put(&Notice{
			ID: NoticeID(newID(now)), Event: event, Request: r.ID, Group: group, Channel: channel, Person: person,
			Created: now, Due: due, Expires: due.Add(noticeFor), Requester: r.Requester.ID,
		})
	}
	for _, group := range groups {
		if group == GroupManager && b.notifier(PeopleChannel) != nil {
			for _, person := range r.manager() {
				put(group, PeopleChannel, person)
			}
		}
		for _, channel := range rules.Groups[group].Notify {
			if told[channel] {
				continue
			}
			told[channel] = true
			put(group, channel, "")
		}
	}
}

// tellEnrolled has a person told of a passkey of theirs, which they may not know
// of: at the address that their provider gave with this login.
func (b *Broker) tellEnrolled(tx Tx, who Identity, p *Passkey, now time.Time) {
	if b.notifier(PeopleChannel) == nil || who.Person.Email == "" {
		return
	}
	tx.Put(&Notice{
		ID: NoticeID(newID(now)), Event: NoticePasskey, Channel: PeopleChannel, Person: who.ID, Address: who.Person.Email,
		Created: now, Due: now, Expires: now.Add(noticeFor), Counts: p.Counts,
	})
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
