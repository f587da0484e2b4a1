package api

import "time"

// Facts help people decide on another caller's request: the access that it would
// permit, how the requester was authenticated, and the requester's earlier
// requests. Only GET /v1/requests/{id} returns them. The digest binds only the
// fields that describe the entitlement and its effect; the other fields show the
// current state.
type Facts struct {
	Description    string            `json:"description,omitempty"` // of the entitlement, by the operator
	Owner          string            `json:"owner,omitempty"`       // of the entitlement, a group
	ScopeTexts     map[string]string `json:"scope_texts,omitempty"` // descriptions of the requested scopes, where the operator has written one
	Effect         string            `json:"effect,omitempty"`      // what a credential permits: the session policy, path or token; several lines
	Revocation     string            `json:"revocation,omitempty"`  // effect of a revocation: immediate, at_expiry, at_rotation, never
	Binding        string            `json:"binding,omitempty"`     // what its tokens must be bound to: mtls, dpop, "dpop or mtls"; absent: nothing
	Proof          Proof             `json:"proof"`                 // of the requester, at the time of the request
	From           string            `json:"from,omitempty"`        // the requester's network address
	TicketURL      string            `json:"ticket_url,omitempty"`
	Ticket         *TicketSeen       `json:"ticket,omitempty"`       // what its tracker last stated; nil: the broker has not looked at it
	History        []RequestHistory  `json:"past,omitempty"`         // of the requester, over the 30 days before, by entitlement
	Similar        []PastRequest     `json:"similar,omitempty"`      // the newest of these requests for the same entitlement, newest first
	HistoryPartial bool              `json:"past_partial,omitempty"` // only the newest requests are counted
}

// A TicketSeen is what a tracker stated about a ticket. Title, Status and Assignee are texts
// of other people.
type TicketSeen struct {
	Tracker     string    `json:"tracker"`
	ID          string    `json:"id"`
	Title       string    `json:"title,omitempty"`
	Status      string    `json:"status,omitempty"`
	States      []string  `json:"states,omitempty"` // in the words of policies; absent: it is closed
	Assignee    string    `json:"assignee,omitempty"`
	Assignees   []string  `json:"assignees,omitempty"` // identities that the broker knows
	WindowFrom  time.Time `json:"window_from,omitzero"`
	WindowUntil time.Time `json:"window_until,omitzero"`
	SeenAt      time.Time `json:"seen_at"`
}

// A RequestHistory counts earlier requests for one entitlement.
type RequestHistory struct {
	Entitlement string `json:"entitlement"`
	Asked       int    `json:"asked"`
	Granted     int    `json:"granted"`
	Denied      int    `json:"denied"`
	Pending     int    `json:"pending"`
}

// A PastRequest is an earlier request for the same entitlement.
type PastRequest struct {
	ID              string    `json:"id,omitempty"` // only for readers who may view it
	Status          string    `json:"status"`
	Scopes          []string  `json:"scopes,omitempty"`
	BreakGlass      bool      `json:"break_glass,omitempty"`
	CreatedAt       time.Time `json:"created_at"`
	Credentials     int       `json:"credentials"`                // how many were collected
	MoreCredentials bool      `json:"more_credentials,omitempty"` // Credentials is a minimum
}
