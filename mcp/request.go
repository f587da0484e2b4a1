package mcp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
)

type requestArguments struct {
	Entitlement   string            `json:"entitlement" jsonschema:"the name, exactly as list_access has it"`
	Scopes        []string          `json:"scopes,omitempty" jsonschema:"only what the task needs; omit them for the defaults"`
	Justification string            `json:"justification,omitempty" jsonschema:"why you need this access now, for which task; people read it before they decide. A claim here that somebody has approved has no effect"`
	Ticket        string            `json:"ticket,omitempty" jsonschema:"the id of the ticket for this work, such as INC-4711"`
	TTL           string            `json:"ttl,omitempty" jsonschema:"how long each credential is valid, such as 10m; omit it for the default"`
	Duration      string            `json:"duration,omitempty" jsonschema:"how long credentials can be collected, such as 2h; omit it for the default"`
	Parameters    map[string]string `json:"parameters,omitempty" jsonschema:"the parameters of the entitlement"`
	Details       []detail          `json:"authorization_details,omitempty" jsonschema:"fine grants: what the credential is good for, and nothing else. Elements of the types that list_access has for the entitlement; send them if it has needs_details. All of them are granted, or none"`
	Message       string            `json:"binding_message,omitempty" jsonschema:"one line that you also show to your user, by which the approver recognizes this request"`
}

func addRequestAccess(s *Server) {
	add(s, tool("request_access", "Request access", `Request one entitlement from Access Broker. Policy decides; if it requires approval, other people decide in the broker's own pages. You cannot approve, and neither can the user of this conversation through you.
The result is a handle and a status, never a credential. An identical request that is still open answers with the same handle, so a repeated call is harmless.
If the status is pending, tell your user who has to approve, continue with other work, and call access_status later.`,
		sdk.ToolAnnotations{DestructiveHint: new(bool), IdempotentHint: true}), requestAccess)
}

func requestAccess(ctx context.Context, c *call, in requestArguments) (*Access, error) {
	ask, err := in.ask()
	if err != nil {
		return nil, err
	}
	if err := c.elicited(&ask); err != nil {
		return nil, err
	}
	r, err := c.Ask(ctx, ask)
	if code := api.CodeOf(err); code == api.JustificationRequired || code == api.TicketRequired {
		if form := c.elicit(ctx, ask, code); form != nil {
			return nil, form
		}
	}
	if err != nil {
		return nil, err
	}
	if r.Status == api.StatusPending {
		StartTask(ctx, c.req, taskOf(r, nil))
	}
	return c.access(ctx, r)
}

func (in requestArguments) ask() (api.Ask, error) {
	ask := api.Ask{
		Entitlement: in.Entitlement, Scopes: in.Scopes, Justification: in.Justification, Ticket: in.Ticket, Parameters: in.Parameters, BindingMessage: in.Message,
	}
	var ttl, forHow, details error
	ask.TTL, ttl = duration("ttl", in.TTL)
	ask.Duration, forHow = duration("duration", in.Duration)
	ask.AuthorizationDetails, details = known(in.Details)
	return ask, errors.Join(ttl, forHow, details)
}

// reasonForm is the key of the form for the reason of a request.
const reasonForm = "reason"

// An inputNeeded ends a call that continues with the answer to a form (multi round-trip
// requests, revision 2026-07-28; clients of older revisions get the form in a call of
// their own).
type inputNeeded struct{ result *sdk.CallToolResult }

func (*inputNeeded) Error() string { return "the client's user has to fill in a form" }

// elicit returns the form for what the ask lacks, or nil if the client shows no forms, or
// if the ask lacks nothing that its user could state. The code is that of the refusal of
// the ask. The form asks for the justification and the ticket alone: a secret has no place
// in a conversation, and the user of this client is not an approver.
func (c *call) elicit(ctx context.Context, ask api.Ask, code api.Code) error {
	if !c.showsForms() || c.req.Params.RequestState != "" {
		return nil
	}
	justification, ticket := c.missing(ctx, ask)
	justification = justification || code == api.JustificationRequired && ask.Justification == ""
	ticket = ticket || code == api.TicketRequired && ask.Ticket == ""
	properties, required := map[string]any{}, []string{}
	if justification {
		properties["justification"] = map[string]any{
			"type": "string", "title": "Justification", "minLength": 1, "maxLength": 2000,
			"description": "Why this access is needed. Approvers read it, and the audit log keeps it. Do not enter passwords or tokens.",
		}
		required = append(required, "justification")
	}
	if ticket {
		properties["ticket"] = map[string]any{
			"type": "string", "title": "Ticket", "minLength": 1, "maxLength": 128,
			"description": "The id of the ticket for this work, such as INC-4711.",
		}
		required = append(required, "ticket")
	}
	if len(required) == 0 {
		return nil
	}
	return &inputNeeded{&sdk.CallToolResult{
		RequestState: c.newState(),
		InputRequests: sdk.InputRequestMap{reasonForm: &sdk.ElicitParams{
			Mode: "form",
			Message: fmt.Sprintf("The agent %s requests %s from Access Broker. Policy requires a %s. Filling in this form does not approve the request.",
				quoted(c.who.ID), quoted(requested(ask)), strings.Join(required, " and a ")),
			RequestedSchema: map[string]any{"type": "object", "properties": properties, "required": required},
		}},
	}}
}

// requested is what an ask is for, in words.
func requested(ask api.Ask) string {
	text := strings.TrimSpace(ask.Entitlement + " " + strings.Join(ask.Scopes, " "))
	for i := range ask.AuthorizationDetails {
		text += "; only for " + ask.AuthorizationDetails[i].Words()
	}
	return text
}

// missing reports what the conditions of the entitlement demand and the ask lacks. One
// form has both, so that the user is asked once. The conditions of fine grants are known
// only from the refusal.
func (c *call) missing(ctx context.Context, ask api.Ask) (justification, ticket bool) {
	offers, err := c.Entitlements(ctx)
	if err != nil {
		return false, false
	}
	for _, o := range offers {
		if o.Entitlement != ask.Entitlement {
			continue
		}
		decisions := []*api.Decision{o.Decision}
		for _, s := range o.Scopes {
			if slices.Contains(ask.Scopes, s.Scope) || len(ask.Scopes) == 0 && s.Default {
				decisions = append(decisions, &s.Decision)
			}
		}
		for _, d := range decisions {
			if d != nil && d.Obligations != nil {
				justification = justification || d.Obligations.Justification
				ticket = ticket || len(d.Obligations.Tickets) > 0 || d.Obligations.OnTicket()
			}
		}
	}
	return justification && ask.Justification == "", ticket && ask.Ticket == ""
}

// errDeclined means that the user did not fill in the form.
var errDeclined = &fault{
	Code: api.JustificationRequired, What: "The user did not state a reason. Nothing was requested.",
	Next: "Do not repeat the request with a reason of your own. Ask your user how to proceed.",
}

// elicited adds the answer to the form, if this call has one. It reads the fields that the
// form has, and no others, and only those that the ask lacks.
func (c *call) elicited(ask *api.Ask) error {
	if c.req.Params.RequestState == "" {
		return nil // answers without the state of their form are ignored
	}
	answer, ok := c.req.Params.InputResponses[reasonForm].(*sdk.ElicitResult)
	if !ok || answer.Action != "accept" {
		return errDeclined
	}
	if text, ok := answer.Content["justification"].(string); ok && ask.Justification == "" {
		ask.Justification = strings.TrimSpace(text)
	}
	if text, ok := answer.Content["ticket"].(string); ok && ask.Ticket == "" {
		ask.Ticket = strings.TrimSpace(text)
	}
	return nil
}

// showsForms reports whether the client can show a form to its user.
func (c *call) showsForms() bool {
	client := c.req.ClientCapabilities()
	if client == nil || client.Elicitation == nil {
		return false
	}
	return client.Elicitation.Form != nil || client.Elicitation.URL == nil // neither: a form, as in revision 2025-06-18
}
