package broker

import "time"

// NoticeID names a notice.
type NoticeID ID

func (id NoticeID) isKey() {}

// String returns "ntc_" and the text of the id.
func (id NoticeID) String() string { return encodeID("ntc_", id) }

// A Notice is an event that a channel must be notified of. The broker writes it in
// the transaction that makes it true. Package notify delivers it at least once.
type Notice struct {
	ID       NoticeID
	Event    NoticeEvent
	Request  RequestID
	Group    string // the group whose channel it is
	Channel  string // as groups.yaml names it, "slack:dba"; or PeopleChannel
	Created  time.Time
	Due      time.Time // of the next attempt; zero: delivered or dropped
	Attempts int       // failed attempts
	Expires  time.Time // when delivery is given up

	Requester string // of the request

	// These concern a notice to one person. Counts is when their new passkey begins
	// to count.
	Person  string
	Address string // empty: the address of their account at the time of delivery
	Counts  time.Time

	// These are the texts of a notice about no request (see Announcement).
	Title, Text, Page string
}

// PeopleChannel is the channel for notices to one person. Its notifier sends mail
// to the Address of the notice.
const PeopleChannel = "people"

// Key returns the key of the row.
func (n *Notice) Key() Key { return n.ID }

// Urgent reports whether the notice is delivered before all that are not urgent,
// and never dropped because of their number.
func (n *Notice) Urgent() bool {
	switch n.Event {
	case NoticeBreakGlass, NoticeReviewed, NoticeOverdue, NoticePasskey, NoticeSignalsHeld:
		return true
	}
	return false
}

// Current reports whether the notice about r is still useful. A notice that asks for
// a decision is not useful after the decision.
func (n *Notice) Current(r *Request, now time.Time) bool {
	switch n.Event {
	case NoticePending, NoticeEscalated:
		return r.State(now) == RequestPending
	case NoticeOverdue:
		return r.Reviewed.IsZero()
	}
	return true
}

// A NoticeQuery selects undelivered notices of one channel. Without a Requester, it
// selects the urgent or the other ones that are due at Now, earliest first. With
// one, it selects all that are not urgent, in the order of their ids.
type NoticeQuery struct {
	Channel   string
	Requester string
	Urgent    bool
	Now       time.Time
	Limit     int
}

// A Backlog is a requester with many undelivered notices for one channel.
type Backlog struct{ Channel, Requester string }

// A DeliveryKey names the messages about a request on a channel.
type DeliveryKey struct {
	Request RequestID
	Channel string
}

func (DeliveryKey) isKey() {}

// A Delivery lists the messages about a request on a channel, so that later
// notices can update them.
type Delivery struct {
	DeliveryKey
	References []string // from the channel, oldest first
	Expires    time.Time
}

// Key returns the key of the row.
func (d *Delivery) Key() Key { return d.DeliveryKey }

// A NoticeEvent is the event that a notice reports.
type NoticeEvent string

// The events.
const (
	NoticePending     NoticeEvent = "request.pending"   // a request waits for approvals of the group
	NoticeEscalated   NoticeEvent = "request.escalated" // it still waits; the group is notified but can't approve it
	NoticeApproved    NoticeEvent = "request.approved"
	NoticeDenied      NoticeEvent = "request.denied"
	NoticeWithdrawn   NoticeEvent = "request.withdrawn"
	NoticeBreakGlass  NoticeEvent = "break_glass.used" // it waits for a review by the group
	NoticeReviewed    NoticeEvent = "break_glass.reviewed"
	NoticeOverdue     NoticeEvent = "break_glass.overdue"
	NoticePasskey     NoticeEvent = "passkey.enrolled" // a person has a new passkey; about no request
	NoticeSignalsHeld NoticeEvent = "signals.held"     // an announcement: security events wait for a person

	NoticeAssessment      NoticeEvent = "supplier.assessment_needed"
	NoticeExtension       NoticeEvent = "supplier.extension" // requested, or decided
	NoticeContractEnds    NoticeEvent = "supplier.contract_ends"
	NoticeReviewStarted   NoticeEvent = "access_review.started" // these and the following are announcements
	NoticeReviewReminder  NoticeEvent = "access_review.reminder"
	NoticeReviewEscalated NoticeEvent = "access_review.escalated"
	NoticeReviewAssigned  NoticeEvent = "access_review.assigned" // items have another reviewer
	NoticeReviewClosed    NoticeEvent = "access_review.closed"
)

// noticeLifetime is how long delivery of a notice is attempted.
const noticeLifetime = 24 * time.Hour

// notify writes a notice, due now, for every channel of the groups.
func (b *Broker) notify(tx Tx, event NoticeEvent, r *Request, groups []string, rules *Rules, now time.Time) {
	b.notifyAt(tx, event, r, groups, rules, now, now)
}

func (b *Broker) notifyAt(tx Tx, event NoticeEvent, r *Request, groups []string, rules *Rules, due, now time.Time) {
	notified := map[string]bool{}
	put := func(group, channel, person string) {
		tx.Put(&Notice{
			ID: NoticeID(newID(now)), Event: event, Request: r.ID, Group: group, Channel: channel, Person: person,
			Created: now, Due: due, Expires: due.Add(noticeLifetime), Requester: r.Requester.ID,
		})
	}
	for _, group := range groups {
		if group == GroupManager && rules.PeopleChannel {
			for _, person := range r.manager(rules) {
				put(group, PeopleChannel, person)
			}
		}
		for _, channel := range rules.Groups[group].Notify {
			if notified[channel] {
				continue
			}
			notified[channel] = true
			put(group, channel, "")
		}
	}
}

// PasskeyNotice returns a notice to a person about a new passkey, at the address
// that the provider returned with this login: the person may not know of it.
func PasskeyNotice(who Identity, counts, now time.Time) *Notice {
	return &Notice{
		ID: NoticeID(newID(now)), Event: NoticePasskey, Channel: PeopleChannel, Person: who.ID, Address: who.Person.Email,
		Created: now, Due: now, Expires: now.Add(noticeLifetime), Counts: counts,
	}
}

// decisionNotice returns the event that reports the decision on a request.
func decisionNotice(r *Request) NoticeEvent {
	if r.Status == RequestApproved {
		return NoticeApproved
	}
	return NoticeDenied
}
