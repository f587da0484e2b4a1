package server

import (
	"context"
	"net/url"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/egress"
)

// Wire names of the states.
var (
	requestStatus = map[broker.RequestStatus]string{
		broker.RequestPending: api.StatusPending, broker.RequestApproved: api.StatusApproved, broker.RequestDenied: api.StatusDenied,
		broker.RequestWithdrawn: api.StatusWithdrawn, broker.RequestLapsed: api.StatusLapsed, broker.RequestEnded: api.StatusEnded,
	}
	leaseStatus = map[broker.LeaseStatus]string{
		broker.LeaseIssuing: api.LeaseIssuing, broker.LeaseActive: api.LeaseActive, broker.LeaseRevoking: api.LeaseRevoking,
		broker.LeaseRevoked: api.LeaseRevoked, broker.LeaseFailed: api.LeaseFailed, broker.LeaseAbandoned: api.LeaseAbandoned,
		broker.LeaseExpired: api.LeaseExpired, broker.LeaseStuck: api.LeaseStuck,
	}
)

func parseStatus(name string) (broker.RequestStatus, error) {
	if name == "" {
		return 0, nil
	}
	for status, text := range requestStatus {
		if text == name {
			return status, nil
		}
	}
	return 0, refuse(broker.ErrInvalidRequest, "status must be pending, approved, denied, withdrawn, lapsed or ended")
}

// toRequest converts a request that the caller may view. It includes the policies
// only if the caller may view those.
func (c *call) toRequest(r *broker.Request, now time.Time) api.Request {
	out := api.Request{
		ID: r.ID.String(), Version: r.Version, Status: requestStatus[r.State(now)],
		Requester: r.Requester.ID, RequesterKind: string(r.Requester.Kind), Attested: string(r.Requester.Attested),
		Entitlement: r.Entitlement, Scopes: r.Scopes, TTL: api.Duration(r.TTL), Duration: api.Duration(r.Duration),
		Justification: r.Justification, BindingMessage: r.Message, Ticket: r.Ticket, Parameters: r.Parameters, AuthorizationDetails: fromDetails(r.Details),
		Digest: hexDigest(r.Digest), Decision: toDecision(r.Decision), DeniedBy: r.DeniedBy,
		CreatedAt: r.Created.UTC(), LapsesAt: utc(r.Lapses), Awaits: awaited(r),
		Team: r.Requester.Team, Accountable: r.Requester.Accountable, Marks: c.s.marksOf(&r.Requester),
		BreakGlass: r.BreakGlass, NotBefore: utc(r.NotBefore), Extends: r.Extends.String(), Reuse: r.Reused,
		AccessEndsAt: utc(r.Until), EndedBy: toEndedBy(r.EndedBy), KeyThumbprint: thumbprint(r.KeyThumbprint),
	}
	setDelegation(&out, r.Delegation)
	for _, subject := range r.RestsOn {
		out.RestsOn = append(out.RestsOn, subject.String())
	}
	if c.s.cfg.Broker.SeesPolicies(c.r.Context(), broker.Self(c.who, now), r) {
		out.Decision.Policies = r.Decision.Policies
		if out.Delegated != nil {
			out.Delegated.Policies = r.Delegation.Decision.Policies
		}
	}
	risk, _ := c.s.cfg.Broker.Rules().Risk(r)
	out.Risk = riskNames[risk]
	out.Approvals = api.Approvals{Needed: toNeeds(r.ApprovalProgress()), Given: toVotes(r.Approvals)}
	if r.Status == broker.RequestApproved {
		g := r.Grant()
		out.Grant = &api.Grant{
			StartsAt: r.Starts().UTC(), CollectUntil: r.CollectUntil.UTC(), ExpiresAt: r.Ends().UTC(),
			Scopes: g.Scopes, TTL: api.Duration(g.TTL), Duration: api.Duration(g.Duration),
		}
	}
	if !r.ReviewDue.IsZero() {
		out.Review = &api.Review{DueAt: r.ReviewDue.UTC(), ClosedAt: utc(r.Reviewed), Needed: toNeeds(r.ReviewProgress()), Given: toVerdicts(r.Verdicts)}
	}
	return out
}

// marksOf returns the marks of a requester: its purpose and its model when the request was
// filed, and the ceiling that bounds it now.
func (s *Server) marksOf(who *broker.Identity) api.Marks {
	m := api.Marks{Purpose: who.Purpose, Model: who.Model}
	if who.Kind == broker.KindWorkload || who.Kind == broker.KindAgent {
		if labels, ok := s.cfg.Broker.Rules().LabelsOf(who.ID); ok {
			m.Ceiling = toCeiling(labels.Ceiling)
		}
	}
	return m
}

// toCeiling converts a ceiling; nil if there is none.
func toCeiling(c *broker.Ceiling) []api.CeilingPart {
	if c == nil {
		return nil
	}
	parts := make([]api.CeilingPart, len(c.Parts))
	for i, p := range c.Parts {
		parts[i] = api.CeilingPart(p)
	}
	return parts
}

// facts returns the information that approvers need in addition to the request. The
// caller must be allowed to view the request.
func (s *Server) facts(ctx context.Context, caller broker.Caller, r *broker.Request) (f api.Facts, err error) {
	b := s.cfg.Broker
	if f.Effect, err = b.Effect(ctx, caller, r); err != nil {
		return f, err
	}
	f.Proof = api.Proof{Method: string(r.Requester.Proof.Method), ExpiresAt: utc(r.Requester.Proof.Expires)}
	if e := b.Rules().Catalogue[r.Entitlement]; e != nil {
		f.Description, f.Owner, f.Revocation = e.Description, e.Owner, string(e.Revocation)
		f.ScopeTexts = textsOf(e, r.Scopes)
		if demand := e.Binding.And(r.Decision.Obligations.Binding); demand != broker.BindingNone {
			f.Binding = demand.String()
		}
	}
	if r.SourceIP.IsValid() {
		f.From = r.SourceIP.String()
	}
	if s.cfg.TicketURL != "" && r.Ticket != "" {
		f.TicketURL = strings.ReplaceAll(s.cfg.TicketURL, "{ticket}", url.PathEscape(r.Ticket))
	}
	f.Ticket = toTicket(b.Facts.SeenTicket(r))
	history, err := b.RequestHistory(ctx, caller, r)
	for _, p := range history.Counts {
		f.History = append(f.History, api.RequestHistory{Entitlement: p.Entitlement, Asked: p.Asked, Granted: p.Granted, Denied: p.Refused, Pending: p.Pending})
	}
	for _, p := range history.Similar {
		f.Similar = append(f.Similar, toPast(p, caller.At))
	}
	f.HistoryPartial = history.Partial
	return f, err
}

// toTicket converts what a tracker stated; nil if the broker has not looked.
func toTicket(t *broker.Ticket) *api.TicketSeen {
	if t == nil {
		return nil
	}
	return &api.TicketSeen{
		Tracker: t.Tracker, ID: t.ID, Title: t.Title, Status: t.Status, States: t.States, Assignee: t.Assignee, Assignees: t.Assignees,
		WindowFrom: utc(t.From), WindowUntil: utc(t.Until), SeenAt: t.Looked.UTC(),
	}
}

// toPast converts an earlier request. Its ID is only for readers who may view it.
func toPast(p broker.PastRequest, now time.Time) api.PastRequest {
	out := api.PastRequest{
		Status: requestStatus[p.State(now)], Scopes: p.Scopes, BreakGlass: p.BreakGlass, CreatedAt: p.Created.UTC(),
		Credentials: p.Credentials, MoreCredentials: p.More,
	}
	if p.Visible {
		out.ID = p.ID.String()
	}
	return out
}

// textsOf returns the operator's descriptions of the scopes that have one.
func textsOf(e *broker.Entitlement, scopes []string) map[string]string {
	texts := map[string]string{}
	for _, scope := range scopes {
		if text := e.ScopeTexts[scope]; text != "" {
			texts[scope] = text
		}
	}
	return texts
}

func toNeeds(progress []broker.ApprovalProgress) (needs []api.Need) {
	for _, p := range progress {
		needs = append(needs, api.Need{Group: p.Group, Count: p.Count, Have: p.Have})
	}
	return needs
}

func toVotes(list []broker.Approval) (out []api.RecordedVote) {
	for _, a := range list {
		out = append(out, api.RecordedVote{
			Person: a.Person, Decision: decisionName(a.Approve), Groups: a.Groups, Comment: a.Comment,
			Scopes: a.Scopes, TTL: api.Duration(a.TTL), Duration: api.Duration(a.Duration), Signed: a.Signed, At: a.At.UTC(),
		})
	}
	return out
}

func toVerdicts(list []broker.Approval) (out []api.Verdict) {
	for _, a := range list {
		out = append(out, api.Verdict{Person: a.Person, Verdict: verdictName(a.Approve), Groups: a.Groups, Comment: a.Comment, Signed: a.Signed, At: a.At.UTC()})
	}
	return out
}

func decisionName(approve bool) string {
	if approve {
		return api.Approve
	}
	return api.Deny
}

func verdictName(justified bool) string {
	if justified {
		return api.Justified
	}
	return api.Unjustified
}

func toDecision(d broker.Decision) api.Decision {
	return api.Decision{Permit: d.Permit, Reasons: d.Reasons, Obligations: toObligations(d.Obligations), Revision: hexDigest(d.Revision)}
}

func toObligations(o broker.Obligations) *api.Obligations {
	out := api.Obligations{
		MaxTTL: api.Duration(o.MaxTTL), MaxDuration: api.Duration(o.MaxDuration),
		Justification: o.Justification, Tickets: o.Tickets, TicketStates: o.TicketStates, TicketAssignees: o.TicketAssignees, ChangeWindow: o.ChangeWindow,
		ExcludeTeam: o.ExcludeTeam, Comment: o.Comment, SilentDenial: o.SilentDenial, Signed: o.Signed, LapseAfter: api.Duration(o.LapseAfter), ReviewWithin: api.Duration(o.ReviewWithin),
	}
	if o.Binding != broker.BindingNone {
		out.Binding = o.Binding.String()
	}
	if o.Denials > 1 {
		out.Denials = o.Denials
	}
	if o.Supplier.Required() {
		out.Supplier = &api.SupplierNeed{AssessedWithin: api.Duration(o.Supplier.AssessedWithin), MaxRisk: o.Supplier.MaxRisk.String()}
	}
	for _, need := range o.Review {
		out.Review = append(out.Review, api.Need{Group: need.Group, Count: need.Count})
	}
	for _, need := range o.Approvals {
		out.Approvals = append(out.Approvals, api.Need{Group: need.Group, Count: need.Count})
	}
	for _, l := range o.Limits {
		out.Limits = append(out.Limits, api.Limit{Count: l.Count, Per: api.Duration(l.Per)})
	}
	for _, l := range o.MaxActive {
		if out.MaxActive == 0 || l.Count < out.MaxActive {
			out.MaxActive = l.Count
		}
	}
	if len(out.Approvals)+len(out.Review)+len(out.Tickets)+len(out.TicketStates)+len(out.TicketAssignees)+len(out.Limits)+out.MaxActive == 0 && !out.Justification && !out.ChangeWindow && out.MaxTTL == 0 && out.MaxDuration == 0 && out.Binding == "" {
		return nil
	}
	return &out
}

func toLease(l *broker.Lease, now time.Time) api.Lease {
	return api.Lease{
		ID: l.ID.String(), Request: l.Request.String(), Status: leaseStatus[l.State(now)], Holder: l.Holder,
		OnBehalfOf: l.Subject, Actors: l.Actors, Parent: l.Parent.String(),
		Entitlement: l.Entitlement, Issuer: l.Issuer, Scopes: l.Scopes, Parameters: l.Parameters, AuthorizationDetails: fromDetails(l.Details), Type: l.Type, Confirm: confirmation(l),
		Revocation: string(l.Revocation), OpenedAt: l.Opened.UTC(), ExpiresAt: l.Expires.UTC(), WorksUntil: utc(l.WorksUntil()), Replaces: l.Replaces.String(),
		EndHow: l.EndHow, EndedBy: toEndedBy(l.EndedBy), EndAskedAt: utc(l.EndAsked), EndedAt: utc(l.Ended), LastError: l.LastError,
		Calls: toCounts(l.Calls),
	}
}

// toCounts converts totals of calls; nil if there were none.
func toCounts(t broker.CallTotals) *api.CallCounts {
	if t.Last.IsZero() {
		return nil
	}
	return &api.CallCounts{Made: t.Made, Refused: t.Refused, Failed: t.Failed, Sent: t.Sent, Received: t.Received, LastAt: t.Last.UTC()}
}

func toOffer(o broker.Offer) api.Offer {
	e := o.Entitlement
	out := api.Offer{
		Entitlement: e.Name, Description: e.Description, Issuer: e.Issuer, Owner: e.Owner, System: e.System, Labels: e.Labels,
		Audience: e.Audience, Binding: e.Binding.String(), Revocation: string(e.Revocation), Blocked: o.Blocked,
		DefaultTTL: api.Duration(e.DefaultTTL), MaxTTL: api.Duration(e.MaxTTL),
	}
	for name, p := range e.Parameters {
		if out.Parameters == nil {
			out.Parameters = map[string]api.Parameter{}
		}
		parameter := api.Parameter{MaxLength: p.MaxLength, Required: p.Required, Description: p.Description}
		if p.Pattern != nil {
			parameter.Pattern = p.Pattern.String()
		}
		out.Parameters[name] = parameter
	}
	for _, so := range o.Scopes {
		isDefault := false
		for _, d := range e.DefaultScopes {
			isDefault = isDefault || d == so.Scope
		}
		out.Scopes = append(out.Scopes, api.ScopeOffer{Scope: so.Scope, Description: e.ScopeTexts[so.Scope], Default: isDefault, Decision: toDecision(so.Decision), BreakGlassOnly: so.BreakGlassOnly, NeedsDetails: so.NeedsDetails})
	}
	if len(o.Scopes) == 0 {
		decision := toDecision(o.Decision)
		out.Decision, out.NeedsDetails = &decision, o.NeedsDetails
	}
	out.DetailTypes, out.Egress = detailSchemas(e), egress.RulesOf(e.Egress)
	return out
}

// awaited returns the suppliers for whose assessment a pending request waits.
func awaited(r *broker.Request) []string {
	if !r.Awaits || r.Status != broker.RequestPending && !r.ID.IsZero() {
		return nil
	}
	return r.Requester.Suppliers
}

// hexDigest returns the digest in hexadecimal; empty for the zero digest.
func hexDigest(d audit.Digest) string {
	if d.IsZero() {
		return ""
	}
	return d.String()
}

// utc returns t in UTC. The zero time stays zero.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC()
}
