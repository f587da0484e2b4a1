package api

import (
	"context"
	"net/http"
	"time"
)

// A Standing is what all sources state about one subject that access rests on.
type Standing struct {
	Kind    string    `json:"kind"` // supplier, person, agent, ticket, source
	Name    string    `json:"name"`
	Holds   bool      `json:"holds"`
	Cause   string    `json:"cause,omitempty"`   // why it does not hold, such as contract_ended
	EndsAt  time.Time `json:"ends_at,omitzero"`  // the earliest known end
	EndedAt time.Time `json:"ended_at,omitzero"` // when it stopped holding
	Facts   []Fact    `json:"facts"`
}

// A Fact is what one source states about the subject.
type Fact struct {
	Source      string            `json:"source"` // file, scim:corp, tickets:jira
	State       string            `json:"state"`  // active, ended, withdrawn
	Cause       string            `json:"cause,omitempty"`
	From        time.Time         `json:"from,omitzero"`
	Until       time.Time         `json:"until,omitzero"`
	ConfirmedAt time.Time         `json:"confirmed_at,omitzero"`
	StaleAt     time.Time         `json:"stale_at,omitzero"` // unless the source confirms it before
	Details     map[string]string `json:"details,omitempty"`
}

// A StandingPage is one page of a list, by name.
type StandingPage struct {
	Standings []Standing `json:"standings"`
	Next      string     `json:"next_cursor,omitempty"` // empty on the last page
}

// A StandingFilter selects standings of a kind, or the one of a name.
type StandingFilter struct {
	Kind, Name, Cursor string
	Limit              int
}

// An EndedBy is the fact that ended access.
type EndedBy struct {
	Fact  string `json:"fact"`  // the subject, as "<kind> <name>"
	Cause string `json:"cause"` // such as contract_ended
}

// Standings lists what access rests on. It needs the action audit.
func (c *Client) Standings(ctx context.Context, f StandingFilter) (*StandingPage, error) {
	query := values("kind", f.Kind, "name", f.Name, "cursor", f.Cursor, "limit", number(f.Limit))
	return fetch[StandingPage](ctx, c, call{method: http.MethodGet, path: "/v1/facts", query: query, retry: true})
}
