package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"accessbroker.internal/audit"
)

type traceKey struct{}

// WithTrace returns a context whose records name the trace.
func WithTrace(ctx context.Context, trace audit.Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, trace)
}

// TraceOf returns the trace of a call's context; zero if it has none.
func TraceOf(ctx context.Context) audit.Trace {
	trace, _ := ctx.Value(traceKey{}).(audit.Trace)
	return trace
}

// Write appends one record in the transaction f and returns its place once it is
// durable. A refusal of f, or ErrUnchanged, passes through. Every other error is
// ErrUnavailable and means that nothing happened.
func Write(ctx context.Context, store Store, reads []Key, record audit.Record, f func(Tx) error) (Receipt, error) {
	record.Trace = TraceOf(ctx)
	entry, err := record.Entry()
	if err != nil {
		return Receipt{}, fmt.Errorf("encoding the record %s: %w", record.Kind, err)
	}
	err = store.Update(ctx, reads, func(tx Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		tx.Append(entry)
		return nil
	})
	if err != nil {
		return Receipt{}, Unavailable(err)
	}
	receipt := Receipt{Index: entry.Index, LeafHash: entry.LeafHash}
	entry.Release()
	return receipt, nil
}

func (b *Broker) write(ctx context.Context, reads []Key, record audit.Record, f func(Tx) error) (Receipt, error) {
	return Write(ctx, b.cfg.Store, reads, record, f)
}

// ErrUnchanged aborts a transaction that would change nothing, so that no record
// is written.
var ErrUnchanged = errors.New("nothing to change")

// Unavailable passes through the errors that callers may see, and wraps all
// others in ErrUnavailable.
func Unavailable(err error) error {
	var refusal *Refusal
	if err == nil || errors.As(err, &refusal) || errors.Is(err, errOvertaken) || errors.Is(err, errLostLease) || errors.Is(err, ErrUnchanged) || isNotFound(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

func ignoreNotFound(err error) error {
	if isNotFound(err) {
		return nil
	}
	return err
}

// commit sets the request's id, the salts of its free texts, and its digest.
func (r *Request) commit(now time.Time) {
	r.ID = NewRequestID(now)
	for field := range r.texts() {
		if r.Salts == nil {
			r.Salts = map[string][16]byte{}
		}
		r.Salts[field] = audit.NewSalt()
	}
	r.Digest = r.digest()
}

// texts returns the free texts from outside. Records have commitments to them;
// the texts are stored next to the records.
func (r *Request) texts() map[string]string {
	if r.Justification == "" && r.Ticket == "" && r.Message == "" && len(r.Parameters)+len(r.Details) == 0 {
		return nil
	}
	t := map[string]string{}
	if r.Justification != "" {
		t["justification"] = r.Justification
	}
	if r.Ticket != "" {
		t["ticket"] = r.Ticket
	}
	if r.Message != "" {
		t["binding_message"] = r.Message
	}
	if len(r.Parameters) > 0 {
		t["parameters"] = string(audit.AppendStrings(nil, r.Parameters))
	}
	if len(r.Details) > 0 {
		t["authorization_details"] = string(AppendDetails(nil, r.Details))
	}
	return t
}

// openings returns the openings of the commitments in facts.
func (r *Request) openings() map[string]audit.Opening {
	texts := r.texts()
	if len(texts) == 0 {
		return nil
	}
	o := make(map[string]audit.Opening, len(texts))
	for field, text := range texts {
		o[field] = audit.Opening{Salt: r.Salts[field], Text: text}
	}
	return o
}

// facts is what the record of a collection shows, in one place.
type facts struct {
	caller   audit.Party
	request  audit.RequestFacts
	decision audit.DecisionFacts
	lease    audit.LeaseFacts
}

// facts returns the request as records show it.
func (r *Request) facts() *audit.RequestFacts {
	f := new(audit.RequestFacts)
	r.fill(f)
	return f
}

func (r *Request) fill(f *audit.RequestFacts) {
	*f = audit.RequestFacts{
		ID: r.ID.String(), Digest: r.Digest, Entitlement: r.Entitlement, Effect: r.Effect, Scopes: r.Scopes,
		TTL: r.TTL, Duration: r.Duration, LapsesAt: r.Lapses,
		BreakGlass: r.BreakGlass, NotBefore: r.NotBefore, Extends: r.Extends.String(), Until: r.Until, Key: r.KeyThumbprint,
	}
	if r.Delegation != nil {
		f.Parent = r.Delegation.Parent.String()
	}
	for _, key := range r.RestsOn {
		f.RestsOn = append(f.RestsOn, key.String())
	}
	if o := r.Decision.Obligations; len(o.Approvals)+len(o.Review) > 0 {
		f.SetAccountable(r.excluded())
	}
	for field, opening := range r.openings() {
		switch field {
		case "binding_message":
			f.Message = opening.Commitment()
		case "justification":
			f.Justification = opening.Commitment()
		case "ticket":
			f.Ticket = opening.Commitment()
		case "parameters":
			f.Parameters = opening.Commitment()
		case "authorization_details":
			f.Details = opening.Commitment()
		}
	}
}

// excluded returns the people who may not approve the request, apart from the requester and
// the subject themselves.
func (r *Request) excluded() []string {
	if r.Delegation == nil {
		return r.Requester.Accountable
	}
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(r.Requester.Accountable, r.Delegation.Subject.Accountable, r.Delegation.Accountable))))
}

// facts returns the decision as records show it. code is the stable code of a
// refusal, empty for a permit.
func (d *Decision) facts(code string) *audit.DecisionFacts {
	f := new(audit.DecisionFacts)
	d.fill(f, code)
	return f
}

func (d *Decision) fill(f *audit.DecisionFacts, code string) {
	o := &d.Obligations
	*f = audit.DecisionFacts{
		Permit: d.Permit && code == "", Policies: d.Policies, Revision: d.Revision,
		Approvals: needTexts(o.Approvals), Review: needTexts(o.Review), Signed: o.Signed, Manner: o.manner(),
		MaxTTL: o.MaxTTL, MaxDuration: o.MaxDuration, Code: code,
	}
	if len(o.Tickets) > 0 || o.TicketTerms.any() {
		f.Tickets = audit.HashObject("accessbroker/tickets/v1", audit.NewObject().StringList("patterns", o.Tickets).StringList("terms", o.TicketTerms.words()))
	}
}

func needTexts(needs []ApprovalNeed) (texts []string) {
	for _, need := range needs {
		texts = append(texts, fmt.Sprintf("%d of %s", need.Count, need.Group))
	}
	return texts
}

// facts returns the approval as records show it.
func (a *Approval) facts() *audit.ApprovalFacts {
	f := &audit.ApprovalFacts{
		Decision: "deny", Digest: a.Digest, Groups: a.Groups, Scopes: a.Scopes, TTL: a.TTL, Duration: a.Duration,
	}
	if a.Approve {
		f.Decision = "approve"
	}
	if a.Comment != "" {
		f.Comment = audit.Opening{Salt: a.Salt, Text: a.Comment}.Commitment()
	}
	return f
}

// verdictFacts returns the verdict of a break-glass review as records show it.
func (a *Approval) verdictFacts() *audit.ApprovalFacts {
	f := a.facts()
	f.Decision = "unjustified"
	if a.Approve {
		f.Decision = "justified"
	}
	return f
}

// openings returns the opening of the commitment in facts.
func (a *Approval) openings() map[string]audit.Opening {
	if a.Comment == "" {
		return nil
	}
	return map[string]audit.Opening{"comment": {Salt: a.Salt, Text: a.Comment}}
}

// facts returns the lease as records show it.
func (l *Lease) facts() *audit.LeaseFacts {
	f := new(audit.LeaseFacts)
	l.fill(f)
	return f
}

func (l *Lease) fill(f *audit.LeaseFacts) {
	*f = audit.LeaseFacts{
		ID: l.ID.String(), Issuer: l.Issuer, Type: l.Type, Expires: l.Expires,
		Revocation: string(l.Revocation), Replaces: l.Replaces.String(), Key: l.KeyThumbprint,
	}
}

// digest returns the digest that approvers sign. It covers exactly the fields that
// records show, so that an auditor can verify what the approvers saw.
func (r *Request) digest() audit.Digest {
	var request audit.RequestFacts // on the stack, as is decision
	var decision audit.DecisionFacts
	r.fill(&request)
	r.Decision.fill(&decision, "")
	return request.Sum(r.requester(), &decision)
}

// askDomain separates ask digests from all other digests.
const askDomain = "accessbroker/ask/v1\n"

// askDigest returns a digest that is equal for asks with the same meaning, free
// texts included. An identical ask finds its open request by it.
func (r *Request) askDigest() audit.Digest {
	o := r.facts().Terms(r.requester(), r.Decision.facts(""))
	for _, field := range slices.Sorted(maps.Keys(r.texts())) {
		o = o.String("text_"+field, r.texts()[field])
	}
	if r.Requester.Attested == AttestedOIDC { // approvers saw that the requester has no SVID, or that it has one
		o = o.String("who_attested", string(r.Requester.Attested))
	}
	return sha256.Sum256(append([]byte(askDomain), o.Bytes()...))
}

// manner returns the conditions of approval, apart from signing.
func (o *Obligations) manner() (words []string) {
	if o.Comment {
		words = append(words, "comment")
	}
	if o.Denials > 1 {
		words = append(words, fmt.Sprintf("deny %d", o.Denials))
	}
	if o.ExcludeTeam {
		words = append(words, "exclude_team")
	}
	if o.SilentDenial {
		words = append(words, "silent_denial")
	}
	if o.Supplier.Required() {
		words = append(words, audit.SupplierManner+o.Supplier.String())
	}
	if o.Binding != BindingNone {
		words = append(words, audit.BindingManner+o.Binding.String())
	}
	return words
}
