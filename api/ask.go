package api

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// An Ask is the body of POST /v1/requests and POST /v1/credentials.
type Ask struct {
	Entitlement    string            `json:"entitlement"`
	Scopes         []string          `json:"scopes,omitempty"`  // empty: the entitlement's default scopes
	TTL            Duration          `json:"ttl,omitzero"`      // of each credential; zero: the entitlement's default, cut to the policy's maximum
	Duration       Duration          `json:"duration,omitzero"` // how long credentials can be collected; zero: the entitlement's default
	Justification  string            `json:"justification,omitempty"`
	BindingMessage string            `json:"binding_message,omitempty"` // one line by which approvers recognize the action
	Ticket         string            `json:"ticket,omitempty"`
	Parameters     map[string]string `json:"parameters,omitempty"`

	AuthorizationDetails []AuthorizationDetail `json:"authorization_details,omitempty"` // what the token is good for (RFC 9396)

	SubjectToken string    `json:"subject_token,omitempty"` // of whom the caller acts for; without a type, the caller's own JWT-SVID
	SubjectType  string    `json:"subject_token_type,omitempty"`
	DryRun       bool      `json:"dry_run,omitempty"`     // return the decision without filing a request
	BreakGlass   bool      `json:"break_glass,omitempty"` // emergency access: no approval first, a review afterwards
	NotBefore    time.Time `json:"not_before,omitzero"`   // start of the grant; zero: now
	Extends      string    `json:"extends,omitempty"`     // an earlier request of the caller, "req_…"
}

// SubjectTokenType returns the type of a token of another identity, on whose behalf a request
// is made, by the typ in its header: TokenTypeIDJAG or TokenTypeAccessToken; empty: it is
// neither. The token is not verified.
func SubjectTokenType(token string) string {
	head, _, _ := strings.Cut(token, ".")
	text, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return ""
	}
	var header struct {
		Type string `json:"typ"`
	}
	if err := json.Unmarshal(text, &header); err != nil {
		return ""
	}
	switch strings.TrimPrefix(header.Type, "application/") {
	case "oauth-id-jag+jwt":
		return TokenTypeIDJAG
	case "at+jwt":
		return TokenTypeAccessToken
	}
	return ""
}
