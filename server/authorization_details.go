package server

import (
	"cmp"
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

// details are the authorization details of a call: the parameters of an entitlement, in one
// element, and fine grants.
type details struct {
	given      bool
	kind       string // the type of the element with the parameters
	parameters map[string]string
	fine       []broker.Detail
}

// parseDetails returns the authorization details of a form (RFC 9396, section 2).
func parseDetails(text string) (details, error) {
	if text == "" {
		return details{}, nil
	}
	if err := walkDetails(text); err != nil {
		return details{}, invalidDetails(strings.Replace(refusalOf(err).Detail, "the body", "the value", 1))
	}
	var list []api.AuthorizationDetail
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := explainJSON(dec.Decode(&list)); err != nil {
		return details{}, invalidDetails(strings.Replace(refusalOf(err).Detail, "the body", "the value", 1))
	}
	if len(list) == 0 {
		return details{}, invalidDetails("send at least one element")
	}
	return readDetails(list)
}

// readDetails sorts the elements by what they are.
func readDetails(list []api.AuthorizationDetail) (d details, err error) {
	d.given = len(list) > 0
	for i, one := range list {
		switch {
		case len(one.Unknown) > 0:
			return d, invalidDetails(fmt.Sprintf("element %d: unknown field %s", i+1, quote(one.Unknown[0])))
		case one.Type == "":
			return d, invalidDetails(fmt.Sprintf("element %d has no type", i+1))
		case one.Parameters == nil && one.Type != api.ParametersDetail:
			fine, err := toFine(&one)
			if err != nil {
				return d, invalidDetails(fmt.Sprintf("element %d: %v", i+1, err))
			}
			d.fine = append(d.fine, fine)
			continue
		case d.kind != "":
			return d, invalidDetails("send one element with the parameters of the entitlement")
		case len(one.Parameters) == 0:
			return d, invalidDetails(fmt.Sprintf("element %d has no parameters", i+1))
		case len(one.Actions)+len(one.Locations)+len(one.DataTypes)+len(one.Privileges)+len(one.Identifier)+len(one.Tool)+len(one.Arguments) > 0:
			return d, invalidDetails(fmt.Sprintf("element %d: an element with parameters has no other field than type", i+1))
		}
		d.kind, d.parameters = one.Type, one.Parameters
	}
	return d, nil
}

// toFine converts a fine grant. The domain compares it with its type.
func toFine(a *api.AuthorizationDetail) (broker.Detail, error) {
	d := broker.Detail{
		Type: a.Type, Actions: a.Actions, Locations: a.Locations, DataTypes: a.DataTypes, Privileges: a.Privileges, Identifier: a.Identifier, Tool: a.Tool,
	}
	if len(a.Arguments) > broker.MaxDetailItems {
		return d, fmt.Errorf("at most %d arguments", broker.MaxDetailItems)
	}
	for _, name := range slices.Sorted(maps.Keys(a.Arguments)) {
		bound, err := toBound(a.Arguments[name])
		if err != nil {
			return d, fmt.Errorf("argument %.128q: %w", name, err)
		}
		bound.Name = name
		d.Arguments = append(d.Arguments, bound)
	}
	return d, nil
}

var errBound = errors.New("write enum or maxLength for a text, minimum and maximum for a whole number, or maxItems and items for a list of texts")

// toBound converts what may be passed as an argument. Its members state exactly one kind.
func toBound(a api.ArgumentBound) (b broker.ArgumentBound, err error) {
	text := len(a.Enum) > 0 || a.MaxLength != 0
	number := a.Minimum != nil || a.Maximum != nil
	list := a.MaxItems != 0 || a.Items != nil
	switch {
	case len(a.Unknown) > 0 || a.Items != nil && len(a.Items.Unknown) > 0:
		return b, errBound
	case text && !number && !list:
		b.Values, b.MaxLength, err = textBound(a.TextBound)
	case number && !text && !list && a.Minimum != nil && a.Maximum != nil:
		b.Number, b.Min, b.Max = true, *a.Minimum, *a.Maximum
	case list && !text && !number && a.MaxItems > 0 && a.Items != nil:
		b.MaxItems = a.MaxItems
		b.Values, b.MaxLength, err = textBound(a.Items.TextBound)
	default:
		return b, errBound
	}
	return b, err
}

func textBound(t api.TextBound) ([]string, int, error) {
	if (len(t.Enum) > 0) == (t.MaxLength > 0) || t.MaxLength < 0 {
		return nil, 0, errBound
	}
	return t.Enum, t.MaxLength, nil
}

// fromDetail converts a fine grant to the form of the wire.
func fromDetail(d *broker.Detail) api.AuthorizationDetail {
	a := api.AuthorizationDetail{
		Type: d.Type, Actions: d.Actions, Locations: d.Locations, DataTypes: d.DataTypes, Privileges: d.Privileges, Identifier: d.Identifier, Tool: d.Tool,
	}
	for _, b := range d.Arguments {
		if a.Arguments == nil {
			a.Arguments = map[string]api.ArgumentBound{}
		}
		text := api.TextBound{Enum: b.Values, MaxLength: b.MaxLength}
		if len(b.Values) > 0 {
			text.MaxLength = 0
		}
		switch {
		case b.Number:
			a.Arguments[b.Name] = api.ArgumentBound{Minimum: &b.Min, Maximum: &b.Max}
		case b.MaxItems > 0:
			a.Arguments[b.Name] = api.ArgumentBound{MaxItems: b.MaxItems, Items: &api.ListBound{TextBound: text}}
		default:
			a.Arguments[b.Name] = api.ArgumentBound{TextBound: text}
		}
	}
	return a
}

func fromDetails(list []broker.Detail) (out []api.AuthorizationDetail) {
	for i := range list {
		out = append(out, fromDetail(&list[i]))
	}
	return out
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
	return refuse(broker.ErrInvalidDetails, "authorization_details: "+detail)
}

// fill adds the details to an ask for an entitlement. The type of the parameters is the
// broker's own, or the name of the entitlement as in tokens and introspections.
func (d details) fill(ask *broker.Ask) error {
	if d.kind != "" && d.kind != api.ParametersDetail && d.kind != ask.Entitlement {
		return invalidDetails("the type of the parameters must be " + api.ParametersDetail + " or the name of the requested entitlement")
	}
	if d.kind != "" && len(ask.Parameters) > 0 {
		return invalidDetails("send the parameters once, in parameters or in authorization_details")
	}
	if d.kind != "" {
		ask.Parameters = d.parameters
	}
	ask.Details = d.fine
	return nil
}

// checkSame refuses details that differ from those of the request that the caller polls.
func (d details) checkSame(r *broker.Request) error {
	if !d.given {
		return nil
	}
	ask := broker.Ask{Entitlement: r.Entitlement}
	if err := d.fill(&ask); err != nil {
		return err
	}
	if !maps.Equal(ask.Parameters, r.Parameters) || !broker.EqualDetails(broker.SortDetails(ask.Details), r.Details) {
		return invalidDetails("the request has other details")
	}
	return nil
}

// grantedDetails returns what an issued token carries (RFC 9396, section 7): the
// parameters under the type that the client used, and the fine grants.
func grantedDetails(l *broker.Lease, requested string) (list []api.AuthorizationDetail) {
	if len(l.Parameters) > 0 {
		list = append(list, api.AuthorizationDetail{Type: cmp.Or(requested, l.Entitlement), Parameters: l.Parameters})
	}
	return append(list, fromDetails(l.Details)...)
}
