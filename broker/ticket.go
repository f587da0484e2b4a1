package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Tickets looks at tickets in other systems.
type Tickets interface {
	// Look asks the ticket's tracker, unless it answered moments ago. It returns a *Refusal
	// if the ticket is unknown. key is not zero if the tracker has tickets of this form and
	// may know it, but does not answer: then what it stated before counts until it is stale.
	Look(ctx context.Context, ticket string) (key StandingKey, known *Ticket, err error)

	// Seen returns the last answer about a ticket from memory; nil if there is none.
	Seen(ticket string) *Ticket
}

// A Ticket is what a tracker states about a ticket. Title, Status and Assignee are texts of
// other people; the rest is in the words of policies.
type Ticket struct {
	Key                     StandingKey
	Source                  string // of facts
	Tracker, ID             string
	Title, Status, Assignee string
	States                  []string  // sorted; none: it is closed
	Assignees               []string  // identities, sorted
	From, Until             time.Time // of the change window; zero: unknown
	Looked                  time.Time
}

// Details of a fact about a ticket.
const (
	detailState    = "state"    // names, separated by spaces
	detailAssignee = "assignee" // identities, separated by line breaks
	detailFrom     = "window_from"
	detailUntil    = "window_until"
)

// Causes of an end by a ticket.
const (
	CauseTicketClosed   = "ticket_closed"
	CauseTicketGone     = "ticket_not_found"
	CauseTicketState    = "ticket_state"
	CauseTicketAssignee = "ticket_reassigned"
	CauseNoWindow       = "no_change_window"
	CauseWindowAhead    = "before_change_window"
	CauseWindowOver     = "change_window_over"
)

// Fact returns the ticket as a fact.
func (t *Ticket) Fact() Fact {
	f := Fact{Source: t.Source, State: FactActive, Confirmed: t.Looked, Details: map[string]string{}}
	if len(t.States) == 0 {
		f.State, f.Cause = FactEnded, CauseTicketClosed
	}
	for name, value := range map[string]string{detailState: strings.Join(t.States, " "), detailAssignee: strings.Join(t.Assignees, "\n")} {
		if value != "" {
			f.Details[name] = value
		}
	}
	if !t.Until.IsZero() {
		f.Details[detailFrom], f.Details[detailUntil] = t.From.UTC().Format(time.RFC3339), t.Until.UTC().Format(time.RFC3339)
	}
	return f
}

// TicketTerms are the obligations on what a ticket's tracker states. They hold when the
// request is made, at each collection, and as long as the grant and its leases last.
type TicketTerms struct {
	TicketStates    []string // sorted; the ticket must be in all of them
	TicketAssignees []string // sorted; each has alternatives, such as "accountable, requester", and the ticket's assignee must be one of each
	ChangeWindow    bool     // only within the change window of the ticket
}

// The alternatives of TicketAssignees.
const (
	AssigneeRequester   = "requester"   // the identity that requests
	AssigneeAccountable = "accountable" // a person accountable for it
)

// any reports whether there is a term, so that the access rests on the ticket.
func (t *TicketTerms) any() bool {
	return len(t.TicketStates)+len(t.TicketAssignees) > 0 || t.ChangeWindow
}

func (t *TicketTerms) equal(o *TicketTerms) bool {
	return slices.Equal(t.TicketStates, o.TicketStates) && slices.Equal(t.TicketAssignees, o.TicketAssignees) && t.ChangeWindow == o.ChangeWindow
}

// words returns the terms as the digest of a request covers them, sorted.
func (t *TicketTerms) words() (words []string) {
	for _, alternatives := range t.TicketAssignees {
		words = append(words, "assignee "+alternatives)
	}
	for _, state := range t.TicketStates {
		words = append(words, "state "+state)
	}
	if t.ChangeWindow {
		words = append(words, "window required")
	}
	return words
}

// fault returns why a ticket does not meet the terms for a requester at a time, or "" and
// when it stops meeting them if that is known.
func (t *TicketTerms) fault(f *Fact, rules *Rules, who Identity, at time.Time) (until time.Time, cause string) {
	states := strings.Fields(f.Details[detailState])
	for _, state := range t.TicketStates {
		if !slices.Contains(states, state) {
			return until, CauseTicketState
		}
	}
	for _, alternatives := range t.TicketAssignees {
		if !slices.ContainsFunc(strings.Split(f.Details[detailAssignee], "\n"), func(id string) bool {
			return id != "" && isAssignee(alternatives, rules, who, id)
		}) {
			return until, CauseTicketAssignee
		}
	}
	if !t.ChangeWindow {
		return until, ""
	}
	from, err1 := time.Parse(time.RFC3339, f.Details[detailFrom])
	until, err2 := time.Parse(time.RFC3339, f.Details[detailUntil])
	switch {
	case err1 != nil || err2 != nil || !from.Before(until):
		return time.Time{}, CauseNoWindow
	case at.Before(from):
		return until, CauseWindowAhead
	case !at.Before(until):
		return until, CauseWindowOver
	}
	return until, ""
}

// isAssignee reports whether an identity is one of the alternatives for a requester.
func isAssignee(alternatives string, rules *Rules, who Identity, id string) bool {
	for word := range strings.SplitSeq(alternatives, ", ") {
		switch {
		case word == AssigneeRequester && (who.Is(id) || rules.People.Same(who.ID, id)):
			return true
		case word == AssigneeAccountable && rules.People.Contains(who.Accountable, id):
			return true
		}
	}
	return false
}

// refuseTicket returns the refusal of access for which a ticket does not meet the terms.
func refuseTicket(key StandingKey, f *Fact, cause string, now time.Time) error {
	name := key.String()
	switch cause {
	case CauseTicketState:
		return refuse(ErrTicketUnfit, fmt.Sprintf("%s is not in the state that policy requires", name))
	case CauseTicketAssignee:
		return refuse(ErrTicketUnfit, fmt.Sprintf("%s is not assigned to a person that policy requires: have it assigned, and try again", name))
	case CauseNoWindow:
		return refuse(ErrTicketUnfit, fmt.Sprintf("%s has no change window, which policy requires: set its start and its end", name))
	case CauseWindowAhead:
		from, _ := time.Parse(time.RFC3339, f.Details[detailFrom]) // fault has read it
		return &Refusal{Err: ErrTicketUnfit, Detail: fmt.Sprintf("the change window of %s begins at %s: set not_before, or try again then", name, f.Details[detailFrom]), Retry: from.Sub(now)}
	case CauseWindowOver:
		return refuse(ErrTicketUnfit, fmt.Sprintf("the change window of %s ended at %s", name, f.Details[detailUntil]))
	}
	return refuseFact(key, cause)
}

// A ticketCheck is when a ticket is checked, and for what.
type ticketCheck struct {
	since time.Time // when the request was filed; zero: it is being filed
	now   time.Time
	dry   bool // nothing is stored
}

// restOnTicket adds the ticket to what a request rests on, if an obligation depends on it.
// It asks the tracker. A ticket that no request may rest on is not stored: callers must not
// be able to fill the log with names of tickets.
func (b *Broker) restOnTicket(ctx context.Context, f *footing, rules *Rules, r *Request, terms *TicketTerms, at ticketCheck) error {
	if !terms.any() {
		return nil
	}
	if r.Ticket == "" {
		return refuse(ErrTicketRequired, "name the ticket in ticket: policy requires one that the broker can look at")
	}
	if b.cfg.Tickets == nil {
		return refuse(ErrFactUnknown, "the broker has no ticket system to look at")
	}
	key, known, failed := b.cfg.Tickets.Look(ctx, r.Ticket)
	if failed != nil && key == (StandingKey{}) {
		return failed
	}
	if known != nil {
		fact := known.Fact()
		if fact.State != FactActive {
			return refuseFact(key, fact.Cause)
		}
		if _, cause := terms.fault(&fact, rules, rules.WithLabels(r.Requester), r.starting(at.now)); cause != "" {
			return refuseTicket(key, &fact, cause, at.now)
		}
		if at.dry {
			return nil
		}
		if err := b.Facts.Report(ctx, Caller{At: at.now}, key, fact); err != nil {
			return err
		}
	}
	err := b.checkTicket(ctx, f, rules, r, terms, key, at)
	if errors.Is(err, ErrFactUnknown) && failed != nil {
		return failed
	}
	return err
}

// checkTicket adds what is known of a ticket to the footing, or refuses if it does not meet
// the terms.
func (b *Broker) checkTicket(ctx context.Context, f *footing, rules *Rules, r *Request, terms *TicketTerms, key StandingKey, at ticketCheck) error {
	s, err := b.check(ctx, f, key, at.since, at.now)
	if err != nil {
		return err
	}
	fact := s.ticket()
	if fact == nil {
		return refuseFact(key, CauseUnknown)
	}
	until, cause := terms.fault(fact, rules, rules.WithLabels(r.Requester), r.starting(at.now))
	if cause != "" {
		return refuseTicket(key, fact, cause, at.now)
	}
	f.until = earlier(f.until, until)
	if i, found := slices.BinarySearchFunc(f.rests, key, StandingKey.compare); !found {
		f.rests = slices.Insert(f.rests, i, key)
	}
	return nil
}

// recheckTicket is restOnTicket for a vote: the tracker is not asked.
func (b *Broker) recheckTicket(ctx context.Context, f *footing, rules *Rules, r *Request, now time.Time) error {
	for _, key := range r.RestsOn {
		if key.Kind != FactTicket {
			continue
		}
		if err := b.checkTicket(ctx, f, rules, r, &r.Decision.Obligations.TicketTerms, key, ticketCheck{since: r.Created, now: now}); err != nil {
			return err
		}
	}
	return nil
}

// starting returns the moment at which the change window counts: now, or the start of a
// request that begins later.
func (r *Request) starting(now time.Time) time.Time {
	if r.NotBefore.After(now) {
		return r.NotBefore
	}
	return now
}

// ticket returns what the tracker states; nil: nothing.
func (s *Standing) ticket() *Fact {
	if len(s.Facts) == 1 {
		return &s.Facts[0]
	}
	return nil
}
