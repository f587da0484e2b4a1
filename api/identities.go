package api

import (
	"cmp"
	"context"
	"encoding/csv"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// An IdentityFilter selects identities of the inventory; empty fields select all.
type IdentityFilter struct {
	Text    string // words of an id, a team, an owner, a supplier or a sponsor
	Kind    string // workload, agent, person
	Team    string
	Problem string // the code of a problem; "any": with any problem
	Cursor  string
	Limit   int
}

// An IdentityPage is a page of the inventory, in the order of the ids. Without Next, it is
// the last one.
type IdentityPage struct {
	Identities []KnownIdentity `json:"identities"`
	Next       string          `json:"next_cursor,omitempty"`
	Uncounted  int64           `json:"uncounted,omitempty"` // records at the end of the log that are not counted yet
}

// A KnownIdentity is an identity of the inventory: one that called the broker, or that the
// rules or a source of facts name.
type KnownIdentity struct {
	ID          string   `json:"id"`
	Kind        string   `json:"kind"`           // workload, agent, person
	Mark        bool     `json:"mark,omitempty"` // a path in the rules below which no identity was seen
	Team        string   `json:"team,omitempty"`
	Accountable []string `json:"accountable,omitempty"`
	Marks
	Accounts        []string          `json:"accounts,omitempty"` // of a person who has several
	Suppliers       []string          `json:"suppliers,omitempty"`
	Sponsor         string            `json:"sponsor,omitempty"`
	EndsAt          time.Time         `json:"ends_at,omitzero"`   // the earliest known end of its access
	Ended           string            `json:"ended,omitempty"`    // why its access has ended
	Named           []string          `json:"named_in,omitempty"` // where the rules name it
	FirstSeen       time.Time         `json:"first_seen,omitzero"`
	LastSeen        time.Time         `json:"last_seen,omitzero"`
	LastUsed        time.Time         `json:"last_used,omitzero"` // when it got its last credential
	Attested        []string          `json:"attested,omitempty"` // methods of proof
	Places          int               `json:"places,omitempty"`   // addresses that its requests came from within a day
	Requestable     int               `json:"requestable"`        // scopes that it may request; an entitlement without scopes counts as one
	Used            int               `json:"used"`               // of those, in 90 days
	Credentials30   int               `json:"credentials_30_days"`
	Credentials90   int               `json:"credentials_90_days"`
	DeniedRequests  int               `json:"denied_requests,omitempty"`
	LiveLeases      int               `json:"live_leases"`
	NextReview      time.Time         `json:"next_review,omitzero"`
	Problems        []IdentityProblem `json:"problems,omitempty"`
	Permits         []KnownPermit     `json:"permits,omitempty"` // only of one identity
	MorePermits     bool              `json:"more_permits,omitempty"`
	Uses            []KnownUse        `json:"uses,omitempty"` // only of one identity
	RecentAddresses []KnownAddress    `json:"recent_addresses,omitempty"`
}

// An IdentityProblem is a reason to look at an identity.
type IdentityProblem struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// A KnownPermit is a policy that may permit requests of an identity. Its id and file are
// set only for readers of the whole inventory.
type KnownPermit struct {
	Policy     string       `json:"policy,omitempty"`
	File       string       `json:"file,omitempty"`
	Line       int          `json:"line,omitempty"`
	Reason     string       `json:"reason,omitempty"`
	BreakGlass bool         `json:"break_glass,omitempty"`
	Reaches    []KnownReach `json:"permits"`
}

// A KnownReach is what a permit permits of one entitlement.
type KnownReach struct {
	Entitlement string   `json:"entitlement"`
	Scopes      []string `json:"scopes,omitempty"`
}

// A KnownUse is how an identity used a scope of an entitlement; the entitlement if it has
// no scopes.
type KnownUse struct {
	Entitlement string    `json:"entitlement"`
	Scope       string    `json:"scope,omitempty"`
	Requestable bool      `json:"requestable"` // a permit still permits it
	LastAsked   time.Time `json:"last_asked,omitzero"`
	LastUsed    time.Time `json:"last_used,omitzero"`
	Credentials int       `json:"credentials"`
}

// A KnownAddress is an address that requests of an identity came from.
type KnownAddress struct {
	Address  string    `json:"address"`
	LastSeen time.Time `json:"last_seen"`
}

// An UnusedReport is what the rules permit and no one used in a period.
type UnusedReport struct {
	Since        time.Time      `json:"since"`
	LogFrom      time.Time      `json:"log_from,omitzero"` // since when the log has records
	Revision     string         `json:"revision"`          // of the rules
	Permits      []UnusedThing  `json:"permits"`
	Scopes       []UnusedThing  `json:"scopes"`       // of permits that were used
	Entitlements []UnusedThing  `json:"entitlements"` // and their scopes
	Members      []UnusedMember `json:"members"`
	Unmeasured   []string       `json:"unmeasured_groups,omitempty"` // whose use the log does not show
	Uncounted    int64          `json:"uncounted,omitempty"`         // records at the end of the log that are not counted yet
}

// An UnusedThing is a permit, a scope that a permit permits, an entitlement, or a scope of
// an entitlement.
type UnusedThing struct {
	Policy      string    `json:"policy,omitempty"`
	File        string    `json:"file,omitempty"`
	Line        int       `json:"line,omitempty"`
	Entitlement string    `json:"entitlement,omitempty"`
	Scope       string    `json:"scope,omitempty"`
	LastUsed    time.Time `json:"last_used,omitzero"` // before the period
	New         bool      `json:"new,omitempty"`      // it was not there at the start of the period
}

// An UnusedMember is a membership of a group.
type UnusedMember struct {
	Group    string    `json:"group"`
	Member   string    `json:"member"`
	LastUsed time.Time `json:"last_used,omitzero"`
	New      bool      `json:"new,omitempty"`
}

// Identities returns a page of the inventory. It needs the action audit or operate.
func (c *Client) Identities(ctx context.Context, f IdentityFilter) (*IdentityPage, error) {
	query := values("q", f.Text, "kind", f.Kind, "team", f.Team, "problem", f.Problem, "cursor", f.Cursor, "limit", number(f.Limit))
	return fetch[IdentityPage](ctx, c, call{method: http.MethodGet, path: "/v1/identities", query: query, retry: true})
}

// Identity returns one identity of the inventory: to readers of all of it, to the identity
// itself, and to the people who are accountable for it.
func (c *Client) Identity(ctx context.Context, id string) (*KnownIdentity, error) {
	return fetch[KnownIdentity](ctx, c, call{method: http.MethodGet, path: "/v1/identity", query: values("id", id), retry: true})
}

// Unused returns what the rules permit and no one used since a time. It needs the action
// audit or operate.
func (c *Client) Unused(ctx context.Context, since time.Time) (*UnusedReport, error) {
	return fetch[UnusedReport](ctx, c, call{method: http.MethodGet, path: "/v1/policy/unused", query: values("since", stamp(since)), retry: true})
}

// identityColumns are the columns of WriteIdentities.
var identityColumns = []string{"id", "kind", "team", "accountable", "suppliers", "sponsor", "ends_at", "first_seen", "last_seen", "last_used", "attested",
	"requestable", "used", "credentials_30_days", "credentials_90_days", "denied_requests", "live_leases", "next_review", "problems", "purpose", "model", "ceiling"}

// WriteIdentities writes identities as CSV (RFC 4180), with a line of column names if
// header is set. A spreadsheet does not take any cell for a formula.
func WriteIdentities(out io.Writer, list []KnownIdentity, header bool) error {
	w := csv.NewWriter(out)
	if header {
		_ = w.Write(identityColumns) // Error returns it
	}
	for _, i := range list {
		var problems []string
		for _, p := range i.Problems {
			problems = append(problems, p.Code)
		}
		row := []string{i.ID, i.Kind, i.Team, strings.Join(i.Accountable, " "), strings.Join(i.Suppliers, " "), i.Sponsor, stamp(i.EndsAt), stamp(i.FirstSeen), stamp(i.LastSeen),
			stamp(i.LastUsed), strings.Join(i.Attested, " "), strconv.Itoa(i.Requestable), strconv.Itoa(i.Used), strconv.Itoa(i.Credentials30), strconv.Itoa(i.Credentials90),
			strconv.Itoa(i.DeniedRequests), strconv.Itoa(i.LiveLeases), stamp(i.NextReview), strings.Join(problems, " "),
			i.Purpose, i.Model, i.CeilingText()}
		for n := range row {
			row[n] = plainCell(row[n])
		}
		_ = w.Write(row)
	}
	w.Flush()
	return w.Error()
}

// CeilingText returns the ceiling in one line; empty if there is none.
func (m *Marks) CeilingText() string {
	if m.Ceiling == nil {
		return ""
	}
	texts := make([]string, len(m.Ceiling))
	for i, p := range m.Ceiling {
		texts[i] = p.Entitlement + ": " + cmp.Or(strings.Join(p.Scopes, " "), "all")
	}
	return cmp.Or(strings.Join(texts, "; "), "nothing")
}

// plainCell returns a cell that no spreadsheet takes for a formula (CWE-1236): an apostrophe
// before the first character makes it text.
func plainCell(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r\n|%", rune(text[0])) {
		return "'" + text
	}
	return text
}
