package api

// Facts are what stands beside a request on the page of it, for those who
// decide: what it would give, how its maker was proved, and what they had
// before. Only GET /v1/requests/{id} has them, and only for people who may see
// the request of somebody else. Nothing of them is bound by the digest but what
// the entitlement gives, its effect: the rest is as it is at that moment.
type Facts struct {
	Description string            `json:"description,omitempty"` // of the entitlement, in the operator's words
	Owner       string            `json:"owner,omitempty"`       // of the entitlement, a group
	ScopeTexts  map[string]string `json:"scope_texts,omitempty"` // what scopes that were asked for mean; may lack some
	Effect      string            `json:"effect,omitempty"`      // what a credential lets its holder do: the session policy, path or token; several lines
	Revocation  string            `json:"revocation,omitempty"`  // what ending a credential early would mean: immediate, at_expiry, at_rotation, never
	Proof       Proof             `json:"proof"`                 // of the requester, when they asked
	From        string            `json:"from,omitempty"`        // the address that they asked from
	TicketURL   string            `json:"ticket_url,omitempty"`  // where the ticket can be looked at
	Past        []Past            `json:"past,omitempty"`        // what the requester asked for in the 30 days before, by entitlement
	PastPartial bool              `json:"past_partial,omitempty"`
}

// A Past counts what the maker of a request asked for before, of one
// entitlement.
type Past struct {
	Entitlement string `json:"entitlement"`
	Asked       int    `json:"asked"`
	Granted     int    `json:"granted"`
	Denied      int    `json:"denied"`
	Pending     int    `json:"pending"`
}
