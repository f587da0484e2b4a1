package tickets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"accessbroker.internal/broker"
)

// A Source answers about single tickets of one kind of system.
type Source interface {
	// Fetch asks about the ticket with this id. It returns ErrNoTicket if there is none,
	// and a *Failure if the system did not answer. It makes one call.
	Fetch(ctx context.Context, id string) (Answer, error)
}

// An Answer is what a system states about a ticket, in the system's own words.
type Answer struct {
	ID          string
	Title       string
	Status      string    // for people, and for Tracker.States
	Code        string    // of the status, if the system has one besides the word
	Open        bool      // by the system's own rule
	Assignees   []string  // as Tracker.People names them
	Assignee    string    // for people
	From, Until time.Time // of the change window; zero: unknown
}

// maxAssignees bounds the assignees of one ticket. GitHub allows ten.
const maxAssignees = 10

// Bounds of the texts of a ticket that people see, in bytes.
const (
	maxTitle = 300
	maxLabel = 100
)

// Names of the states that every tracker has.
const (
	StateOpen   = "open"
	StateClosed = "closed"
)

// A Tracker is one ticket system of the operator's file.
type Tracker struct {
	Name    string
	Source  Source
	Pattern *regexp.Regexp // of its tickets, anchored. Its first group, if it has one, is the id in the tracker

	// States are the tracker's statuses by the names that policies use. Without "open",
	// the system's own rule decides which statuses are open; a status of "closed" is
	// never open.
	States map[string][]string

	// People names the tracker's assignees as identities: "login/ana". For others, Person
	// is the form of the identity, such as "login/{assignee}"; empty: they are unknown.
	People map[string]string
	Person string

	Interval   time.Duration // between two looks at a ticket on which live access rests
	StaleAfter time.Duration // how long a ticket counts as known after a look
	Hook       Hook
}

// assigneePlace is where Tracker.Person has the assignee.
const assigneePlace = "{assignee}"

// id returns the id in the tracker of a ticket that a requester named, and whether the
// ticket is one of this tracker.
func (t *Tracker) id(ticket string) (string, bool) {
	groups := t.Pattern.FindStringSubmatch(ticket)
	switch {
	case groups == nil || ticket == "":
		return "", false
	case len(groups) > 1:
		return groups[1], groups[1] != ""
	}
	return ticket, true
}

// source is the name under which facts state where they come from.
func (t *Tracker) source() string { return SourceOf(t.Name) }

// SourceOf returns the name of a tracker as a source of facts.
func SourceOf(tracker string) string { return "tickets:" + tracker }

// key returns the name of a ticket as a subject of facts.
func (t *Tracker) key(id string) broker.StandingKey {
	return broker.StandingKey{Kind: broker.FactTicket, Name: t.Name + "/" + id}
}

// StateNames returns the states that policies may demand of a tracker's tickets.
func StateNames(states map[string][]string) []string {
	names := slices.Collect(maps.Keys(states))
	if !slices.Contains(names, StateOpen) {
		names = append(names, StateOpen)
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == StateClosed })
}

// fetch asks the tracker about a ticket and says it in the broker's words. An answer about
// another ticket, as of one that was moved, is as good as none.
func (t *Tracker) fetch(ctx context.Context, id string) (broker.Ticket, error) {
	a, err := t.Source.Fetch(ctx, id)
	if err != nil {
		return broker.Ticket{}, err
	}
	if a.ID != id {
		return broker.Ticket{}, fmt.Errorf("%w: it answers with %q", ErrNoTicket, shorten(a.ID, maxLabel))
	}
	known := broker.Ticket{
		Key: t.key(id), Source: t.source(), Tracker: t.Name, ID: id,
		Title: shorten(a.Title, maxTitle), Status: shorten(a.Status, maxLabel), Assignee: shorten(a.Assignee, maxLabel),
		States: t.states(a), Assignees: t.people(a.Assignees),
	}
	if a.From.Before(a.Until) && !a.From.IsZero() {
		known.From, known.Until = a.From.UTC(), a.Until.UTC()
	}
	return known, nil
}

// states returns the names of a ticket's states, sorted; none if it is closed.
func (t *Tracker) states(a Answer) (names []string) {
	has := func(name string) bool {
		return slices.Contains(t.States[name], a.Status) || a.Code != "" && slices.Contains(t.States[name], a.Code)
	}
	if has(StateClosed) {
		return nil
	}
	for name := range t.States {
		if has(name) {
			names = append(names, name)
		}
	}
	if _, own := t.States[StateOpen]; !own && a.Open {
		names = append(names, StateOpen)
	}
	slices.Sort(names)
	return names
}

// people returns the identities of assignees. Those without one are left out, so that
// they match no requester.
func (t *Tracker) people(assignees []string) (ids []string) {
	for _, a := range assignees {
		id := t.People[a]
		if id == "" && t.Person != "" {
			id = strings.ReplaceAll(t.Person, assigneePlace, a)
		}
		if CheckIdentity(id) == nil && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// CheckIdentity returns an error unless id names a person, or a workload.
func CheckIdentity(id string) error {
	if strings.HasPrefix(id, "spiffe://") {
		_, _, err := broker.ParseWorkloadID(id)
		return err
	}
	_, _, err := broker.ParsePerson(id)
	if err == nil && strings.ContainsAny(id, "\n\r\t") {
		return errors.New("a name has no line breaks")
	}
	return err
}

// shorten cuts an outside text to a number of bytes, between characters.
func shorten(text string, most int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= most {
		return text
	}
	cut := most - len("…")
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}

// unexpected returns the failure of an answer without a usable field.
func unexpected(field string) error {
	return &Failure{Err: fmt.Errorf("the tracker's answer has no usable %s", field)}
}
