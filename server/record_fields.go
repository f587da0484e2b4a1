package server

import (
	"encoding/base64"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// A fieldGroup is a part of a record as a table.
type fieldGroup struct {
	Title  string
	Fields []field
}

// A field is one row of a record's table. It has one of the values.
type field struct {
	Name   string
	Text   string
	Path   string    // of a page about the text; empty: none
	Time   time.Time // instead of a text
	Hash   string    // instead of a text: SHA-256 in hexadecimal, or base64url
	Quote  string    // instead of a text: the text of another party
	Erased bool      // the text that Hash commits to is not stored
}

// A fielder collects the fields of a record.
type fielder struct {
	auditor  bool // may search, so that values link to searches
	openings map[string]audit.Opening
	groups   []fieldGroup
}

// fieldsOf returns all that a record states, for people.
func fieldsOf(r *audit.Record, openings map[string]audit.Opening, auditor bool) []fieldGroup {
	f := &fielder{auditor: auditor, openings: openings}
	f.group("Record")
	f.text("Kind", kindTitle(r.Kind))
	f.time("Time", r.Time)
	if r.Count > 1 {
		f.text("Identical events", strconv.Itoa(r.Count))
	}
	if !r.Trace.IsZero() {
		f.text("Trace context", r.Trace.String())
	}
	f.party("Caller", r.Caller)
	f.party("On behalf of", r.Subject)
	f.request(r.Request)
	f.decision("Decision", r.Decision)
	f.decision("Decision on the subject", r.Delegated)
	f.approval(r.Approval)
	f.lease(r.Lease)
	if call := r.Call; call != nil {
		f.group("Call")
		f.text("Method", call.Method)
		f.committed("Target", "target", call.Target)
	}
	f.end(r.End)
	f.rest(r)
	return slices.DeleteFunc(f.groups, func(g fieldGroup) bool { return len(g.Fields) == 0 })
}

func (f *fielder) group(title string) { f.groups = append(f.groups, fieldGroup{Title: title}) }

func (f *fielder) add(x field) {
	g := &f.groups[len(f.groups)-1]
	g.Fields = append(g.Fields, x)
}

func (f *fielder) text(name, text string) {
	if text != "" {
		f.add(field{Name: name, Text: text})
	}
}

func (f *fielder) list(name string, list []string) { f.text(name, strings.Join(list, ", ")) }

func (f *fielder) time(name string, t time.Time) {
	if !t.IsZero() {
		f.add(field{Name: name, Time: t})
	}
}

func (f *fielder) span(name string, d time.Duration) {
	if d > 0 {
		f.text(name, spoken(d))
	}
}

func (f *fielder) digest(name string, d audit.Digest) {
	if !d.IsZero() {
		f.add(field{Name: name, Hash: d.String()})
	}
}

func (f *fielder) bytes(name string, b []byte) {
	if len(b) > 0 {
		f.add(field{Name: name, Hash: base64.RawURLEncoding.EncodeToString(b)})
	}
}

// link adds a text that leads to a search, for those who may search.
func (f *fielder) link(name, text, parameter string) {
	if text == "" {
		return
	}
	x := field{Name: name, Text: text}
	if f.auditor {
		x.Path = "/ui/audit?" + url.Values{parameter: {text}}.Encode()
	}
	f.add(x)
}

// committed adds a free text, or its commitment if the text is not stored.
func (f *fielder) committed(name, key string, commitment audit.Digest) {
	if commitment.IsZero() {
		return
	}
	if o, stored := f.openings[key]; stored {
		f.add(field{Name: name, Quote: o.Text})
	} else {
		f.add(field{Name: name, Hash: commitment.String(), Erased: true})
	}
}

func (f *fielder) party(title string, p *audit.Party) {
	if p == nil {
		return
	}
	f.group(title)
	f.link("Identity", p.ID, "who")
	f.text("Kind", p.Kind)
	f.text("Proof", p.Method)
	f.text("Attested", p.Attested)
	f.digest("SHA-256 of the proof", p.Proof)
	f.time("Proof expires", p.Expires)
	f.list("Actors", p.Actors)
	f.list("Accounts", p.Accounts)
	f.list("Further proofs", p.Also)
}

func (f *fielder) request(r *audit.RequestFacts) {
	if r == nil {
		return
	}
	f.group("Request")
	f.requestID("Request", r.ID)
	f.link("Entitlement", r.Entitlement, "entitlement")
	f.list("Scopes", r.Scopes)
	f.span("Credential valid", r.TTL)
	f.span("Collectable for", r.Duration)
	if r.BreakGlass {
		f.text("Break-glass", "yes")
	}
	f.committed("Justification", "justification", r.Justification)
	f.committed("Binding message", "binding_message", r.Message)
	f.committed("Ticket", "ticket", r.Ticket)
	f.committed("Parameters", "parameters", r.Parameters)
	f.committed("Fine grants", "authorization_details", r.Details)
	f.committed("Network address", "source", r.Source)
	f.time("Lapses", r.LapsesAt)
	f.time("Not before", r.NotBefore)
	f.requestID("Extends", r.Extends)
	f.text("Exchanged lease", r.Parent)
	f.digest("DPoP key", r.Key)
	f.list("Accountable people", r.Accountable)
	f.list("Rests on", r.RestsOn)
	f.time("Ends at the latest", r.Until)
	f.digest("Digest of the request", r.Digest)
	f.digest("Digest of the access", r.Effect)
}

// requestID adds a link to a request's records.
func (f *fielder) requestID(name, id string) {
	if id != "" {
		f.add(field{Name: name, Text: id, Path: "/ui/requests/" + url.PathEscape(id) + "/log"})
	}
}

func (f *fielder) decision(title string, d *audit.DecisionFacts) {
	if d == nil {
		return
	}
	f.group(title)
	f.text("Policy", map[bool]string{true: "permitted", false: "denied"}[d.Permit])
	f.text("Code", d.Code)
	f.list("Determining policies", d.Policies)
	f.list("Required approvals", d.Approvals)
	f.list("Required reviews", d.Review)
	if d.Signed {
		f.text("Signatures", "required")
	}
	f.list("Further conditions", d.Manner)
	f.span("Longest credential", d.MaxTTL)
	f.span("Longest grant", d.MaxDuration)
	f.digest("Conditions on the ticket", d.Tickets)
	f.digest("Revision", d.Revision)
}

func (f *fielder) approval(a *audit.ApprovalFacts) {
	if a == nil {
		return
	}
	f.group("Vote")
	f.text("Vote", a.Decision)
	f.list("For", a.Groups)
	f.committed("Comment", "comment", a.Comment)
	f.list("Narrowed to scopes", a.Scopes)
	f.span("Narrowed validity", a.TTL)
	f.span("Narrowed duration", a.Duration)
	f.digest("Digest of the request", a.Digest)
}

func (f *fielder) supplier(s *audit.SupplierFacts) {
	if s == nil {
		return
	}
	f.group("Supplier")
	f.text("Supplier", s.Name)
	f.text("Id", s.ID)
	f.text("Risk", s.Risk)
	f.committed("Answers", "answers", s.Answers)
	f.committed("Evidence", "evidence", s.Evidence)
	f.committed("Reason or comment", "reason", s.Reason)
	f.time("Contract ends", s.From)
	f.time("Until", s.Until)
	f.digest("Digest of the supplier's entry", s.Digest)
}

func (f *fielder) lease(l *audit.LeaseFacts) {
	if l == nil {
		return
	}
	f.group("Lease")
	f.link("Lease", l.ID, "q")
	f.text("Issuer", l.Issuer)
	f.text("Type", l.Type)
	f.list("Scopes", l.Scopes)
	f.time("Expires", l.Expires)
	f.text("Revocation", strings.ReplaceAll(l.Revocation, "_", " "))
	f.link("Replaces", l.Replaces, "q")
	f.digest("Bound to the DPoP key", l.Key)
	f.digest("Commitment to the credential", l.Credential)
}

func (f *fielder) end(e *audit.EndFacts) {
	if e == nil {
		return
	}
	f.group("End")
	f.text("How", strings.ReplaceAll(e.How, "_", " "))
	f.committed("Reason", "reason", e.Reason)
	f.time("Works until", e.ValidUntil)
	f.text("Fact", e.Fact)
	f.text("Cause", strings.ReplaceAll(e.Cause, "_", " "))
}

// rest adds the facts of records that are not about requests.
func (f *fielder) rest(r *audit.Record) {
	if b := r.Block; b != nil {
		f.group("Block")
		f.text("Of", b.Selector)
		f.committed("Reason", "reason", b.Reason)
	}
	f.campaign(r.Campaign)
	f.signal(r.Signal)
	f.pruned(r.Pruned)
	f.recovery(r.Recovery)
	f.supplier(r.Supplier)
	if x := r.Fact; x != nil {
		f.group("Fact")
		f.link("About", x.Subject, "q")
		f.text("Source", x.Source)
		f.text("State", x.State)
		f.text("Cause", strings.ReplaceAll(x.Cause, "_", " "))
		f.time("From", x.From)
		f.time("Until", x.Until)
		f.committed("Details", "details", x.Details)
	}
	f.directory(r.Directory)
	if m := r.Membership; m != nil {
		f.group("Membership")
		f.text("System", m.System)
		f.text("Group", m.Group)
		f.committed("Member", "member", m.Member)
		f.text("Change", strings.ReplaceAll(m.Change, "_", " "))
		f.digest("Digest of system, group and member", m.ID)
	}
	if k := r.Key; k != nil {
		f.group("Key")
		f.text("Key", k.ID)
		f.text("Purpose", k.Purpose)
		f.text("Algorithm", k.Algorithm)
		f.digest("SHA-256 of the public key", k.Public)
	}
	if l := r.Log; l != nil {
		f.group("Log")
		f.text("Name", l.Origin)
		f.text("Last checkpoint of the earlier log", l.Previous)
	}
	if p := r.Passkey; p != nil {
		f.group("Passkey")
		f.text("Site", p.RP)
		f.time("Counts from", p.Counts)
		f.bytes("Credential", p.Credential)
		f.bytes("Public key", p.Public)
	}
	if s := r.Signature; s != nil {
		f.group("Signature by a passkey")
		f.bytes("Credential", s.Credential)
		f.bytes("Signature", s.Signature)
		f.bytes("Client data", s.ClientData)
		f.bytes("Authenticator data", s.AuthenticatorData)
		f.digest("Nonce", s.Nonce)
	}
	if rules := r.Rules; rules != nil {
		f.group("Rules")
		f.digest("Revision", rules.Revision)
		for _, name := range slices.Sorted(maps.Keys(rules.Files)) {
			f.digest(name, rules.Files[name])
		}
	}
}
