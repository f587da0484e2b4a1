package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// A token has exactly the power that its request names. Endpoints ignore unknown
// parameters (RFC 6749, section 3.2), but a parameter that would narrow or bind the
// token is honored or refused: an ignored one would make the token stronger than its
// client requested.

// narrowing are the parameters that would narrow or bind a token in a way that the token
// endpoint does not support, with what to do instead.
var narrowing = map[string]string{
	"claims":                  "the claims of a token cannot be selected", // OpenID Connect Core, section 5.5
	"request":                 "send the parameters in the form",          // RFC 9101
	"request_uri":             "send the parameters in the form",          // RFC 9101
	"req_cnf":                 onlyByProof,                                // RFC 9201, section 3.1
	"cnf":                     onlyByProof,                                // RFC 7800
	"acr_values":              onlyBySVID,                                 // RFC 9470
	"max_age":                 onlyBySVID,                                 // RFC 9470
	"login_hint":              onlyByToken,                                // OpenID Connect Core, section 3.1.2.1
	"login_hint_token":        onlyByToken,                                // CIBA, section 7.1
	"id_token_hint":           onlyByToken,
	"requested_subject":       onlyByToken, // of other servers
	"username":                onlyByToken, // RFC 6749, section 4.3
	"on_behalf_of":            onlyByToken,
	"requested_token_use":     onlyByToken,                // of Entra ID
	"grant_id":                "grants cannot be managed", // FAPI Grant Management
	"grant_management_action": "grants cannot be managed",
	"expires_in":              "use ttl",
	"entitlement":             "use audience", // this and the following are fields of /v1
	"scopes":                  "use scope",
	"parameters":              "use authorization_details",
	"not_before":              onlyOnV1,
	"extends":                 onlyOnV1,
	"break_glass":             onlyOnV1,
	"dry_run":                 onlyOnV1,
}

const (
	onlyByProof = "send a DPoP proof, or call over TLS with an X.509-SVID"
	onlyBySVID  = "workloads authenticate with their SVID only"
	onlyOnV1    = "it is accepted on /v1 only"
	onlyByToken = "only a token of the person, as assertion or subject_token, lets the caller act for them"
)

// exchangeOnly are the parameters of token exchange (RFC 8693, section 2.1) that name
// parties. With another grant, the token would be for another party.
var exchangeOnly = []string{"subject_token", "subject_token_type", "actor_token", "actor_token_type"}

// tokenParameters are the parameters that the token endpoint honors.
var tokenParameters = []string{
	"grant_type", "client_id", "client_assertion", "client_assertion_type", "requested_token_type",
	"audience", "resource", "scope", "authorization_details", "ttl", "duration", "justification", "ticket", "binding_message", "request_id",
	"completion_mode", "deferral_code", "auth_req_id", "dpop_jkt",
}

// checkNarrowing refuses a call for a token that would be narrower or bound otherwise
// than the endpoint can make it.
func (c *call) checkNarrowing() error {
	exchange, first := c.form.get("grant_type") == api.GrantTokenExchange, ""
	for name := range c.form {
		_, narrows := narrowing[name]
		if c.route.path == backchannelPath && slices.Contains(backchannelParameters, name) {
			continue
		}
		narrows = narrows || name == "assertion" && c.form.get("grant_type") != api.GrantJWTBearer
		if (narrows || !exchange && slices.Contains(exchangeOnly, name)) && (first == "" || name < first) {
			first = name
		}
	}
	if first == "assertion" {
		return refuse(broker.ErrInvalidRequest, first+" is a parameter of the JWT bearer grant: use grant_type="+api.GrantJWTBearer)
	}
	if advice, ok := narrowing[first]; ok {
		return refuse(broker.ErrInvalidRequest, first+" is not supported: "+advice)
	}
	if first != "" {
		return refuse(broker.ErrInvalidRequest, first+" is a parameter of token exchange: use grant_type="+api.GrantTokenExchange)
	}
	if err := c.checkKeyParameter(); err != nil {
		return err
	}
	return c.checkTokenQuery()
}

// checkTokenQuery refuses parameters of the endpoint in the query, where they have no
// effect.
func (c *call) checkTokenQuery() error {
	if c.r.URL.RawQuery == "" {
		return nil
	}
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return refuse(broker.ErrInvalidRequest, "the query is not valid")
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		_, narrows := narrowing[name]
		if narrows || slices.Contains(tokenParameters, name) || slices.Contains(exchangeOnly, name) || slices.Contains(backchannelParameters, name) {
			return refuse(broker.ErrInvalidRequest, "send "+name+" in the body, not in the query")
		}
	}
	return nil
}

// parseDetails returns the authorization details of a call (RFC 9396, section 2): the
// parameters of the entitlement, in one element. It returns nil if the call has none.
func parseDetails(text string) (*api.AuthorizationDetail, error) {
	if text == "" {
		return nil, nil
	}
	if err := walkDetails(text); err != nil {
		return nil, invalidDetails(strings.Replace(refusalOf(err).Detail, "the body", "the value", 1))
	}
	var list []api.AuthorizationDetail
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := explainJSON(dec.Decode(&list)); err != nil {
		return nil, invalidDetails(strings.Replace(refusalOf(err).Detail, "the body", "the value", 1))
	}
	switch {
	case len(list) != 1:
		return nil, invalidDetails(fmt.Sprintf("send one element with the parameters of the entitlement, not %d", len(list)))
	case list[0].Type == "":
		return nil, invalidDetails("the element has no type")
	case len(list[0].Parameters) == 0:
		return nil, invalidDetails("the element has no parameters")
	}
	return &list[0], nil
}

// walkDetails makes the checks that encoding/json does not make: see decodeJSON.
func walkDetails(text string) error {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	if !strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "[") {
		return refuse(broker.ErrInvalidParameter, "the value is not a JSON array")
	}
	if err := walkValue(dec, -1); err != nil { // -1: the elements are at the depth of a body
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return refuse(broker.ErrInvalidParameter, "the value continues after the JSON array")
	}
	return nil
}

func invalidDetails(detail string) error {
	return refuse(broker.ErrInvalidParameter, "authorization_details: "+detail)
}

// parametersOf returns the parameters of the details for an entitlement. The type is
// the broker's own, or the name of the entitlement as in tokens and introspections.
func parametersOf(detail *api.AuthorizationDetail, entitlement string) (map[string]string, error) {
	switch {
	case detail == nil:
		return nil, nil
	case detail.Type != api.ParametersDetail && detail.Type != entitlement:
		return nil, invalidDetails("the type must be " + api.ParametersDetail + " or the name of the requested entitlement")
	}
	return detail.Parameters, nil
}

// grantedDetails returns the parameters that an issued token carries (RFC 9396, section
// 7), under the type that the client used.
func grantedDetails(l *broker.Lease, requested string) []api.AuthorizationDetail {
	if len(l.Parameters) == 0 {
		return nil
	}
	detail := api.AuthorizationDetail{Type: l.Entitlement, Parameters: l.Parameters}
	if requested != "" {
		detail.Type = requested
	}
	return []api.AuthorizationDetail{detail}
}
