package broker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// ClaimsFor is how long a person's claims are recent enough to decide by.
const ClaimsFor = 15 * time.Minute

// checkApprovable rejects a request that can never be approved, and a break-
// glass request that can never be reviewed.
func (b *Broker) checkApprovable(ctx context.Context, rules *Rules, r *Request, now time.Time) error {
	o := r.Decision.Obligations
	if len(o.Approvals) > 0 && r.Requester.Kind != KindPerson && len(r.Requester.Accountable) == 0 {
		return refuse(ErrNobodyAccountable, "approval needs an accountable person for this workload: ask the operators to name one")
	}
	for _, other := range r.Delegation.others(rules) {
		if len(o.Approvals) > 0 && other.Kind != KindPerson && len(other.Accountable) == 0 {
			return refuse(ErrNobodyAccountable, "approval needs an accountable person for each workload of the chain, and "+other.ID+" has none: ask the operators to name one")
		}
	}
	if err := b.checkQuorum(ctx, rules, r, o.Approvals, now); err != nil || !r.BreakGlass {
		return err
	}
	return b.checkQuorum(ctx, rules, r, o.Review, now)
}

// maxCandidates bounds how many people checkQuorum checks against policy. It assumes
// that all others may approve; if not, their own vote is refused.
const maxCandidates = 50

// checkQuorum rejects a request that can never gather enough approvers. It
// judges only groups whose members are all listed, and unconditional forbids.
func (b *Broker) checkQuorum(ctx context.Context, rules *Rules, r *Request, needs []ApprovalNeed, now time.Time) error {
	if _, known := r.team(rules); r.Decision.Obligations.ExcludeTeam && !known && len(needs) > 0 {
		return refuse(ErrNobodyCanApprove, "policy excludes the requester's team from approving, but the team is not a group: ask the operators to set a team that is a group")
	}
	closed, all := r.closedGroups(rules, needs)
	all = slices.DeleteFunc(all, func(a Approval) bool { return !b.present(ctx, rules, a.Person, now) })
	if _, full := assignApprovers(closed, all); !full {
		return refuse(ErrNobodyCanApprove, "fewer people may approve or review this than policy requires: ask the operators")
	}
	if len(closed) == 0 {
		return nil
	}
	var able []Approval
	for i, a := range all {
		if i == maxCandidates {
			return nil
		}
		d, err := b.decideApproval(ctx, rules, r, rules.WithLabels(listedPerson(a.Person)), now)
		if err != nil {
			return err
		}
		if !d.Permit && d.Lasting {
			continue
		}
		able = append(able, a)
		if _, full := assignApprovers(closed, able); full {
			return nil
		}
	}
	return refuse(ErrNobodyCanApprove, "policy forbids so many people to approve or review this that too few remain: ask the operators")
}

// closedGroups returns the needs whose groups have only listed members, and an
// approval by each of these members who may decide.
func (r *Request) closedGroups(rules *Rules, needs []ApprovalNeed) (closed []ApprovalNeed, all []Approval) {
	team, _ := r.team(rules)
	for _, need := range needs {
		members := rules.Groups[need.Group].Members
		if need.Group == GroupManager {
			members = r.manager(rules)
		} else if rules.Groups[need.Group].Claimed {
			continue // members by claims cannot be counted
		}
		closed = append(closed, need)
		for _, person := range members {
			if r.conflictOfInterest(rules, person) || r.Decision.Obligations.ExcludeTeam && rules.People.Contains(team, person) {
				continue
			}
			i := slices.IndexFunc(all, func(a Approval) bool { return rules.People.Same(a.Person, person) })
			if i < 0 {
				i, all = len(all), append(all, Approval{Person: person, Approve: true})
			}
			all[i].Groups = append(all[i].Groups, need.Group)
		}
	}
	return closed, all
}

// listedPerson returns the identity of a listed member who may never have logged in.
func listedPerson(id string) Identity {
	provider, _, _ := strings.Cut(id, "/")
	return Identity{ID: id, Kind: KindPerson, Person: &Person{Provider: provider}}
}

// approvalQuery asks whether a policy forbids that a person decides on the
// request. The query is the same when the request is filed and when the person
// decides.
func (r *Request) approvalQuery(rules *Rules, who Identity) Query {
	return Query{Principal: who, Action: ActionApprove, Request: r, Entitlement: rules.Catalogue[r.Entitlement]}
}

// groupsOf returns the needed groups of which the person is a member. claimed
// reports whether any of them depends on the person's claims.
func (r *Request) groupsOf(rules *Rules, who Identity, needs []ApprovalNeed) (groups []string, claimed bool) {
	listed, byClaim := rules.Policy.Groups(who)
	for _, need := range needs {
		switch {
		case need.Group == GroupManager && rules.People.Contains(r.manager(rules), who.ID), slices.Contains(listed, need.Group):
			groups = append(groups, need.Group)
		case slices.Contains(byClaim, need.Group):
			groups, claimed = append(groups, need.Group), true
		}
	}
	return groups, claimed
}

// authorizeVote returns the groups for which the person may decide, or the
// reason why there are none. Where the result depends on claims, stale claims
// are refused. A listed member can vote while the provider is down.
func (b *Broker) authorizeVote(ctx context.Context, caller Caller, rules *Rules, r *Request, needs []ApprovalNeed) ([]string, error) {
	groups, claimed := r.groupsOf(rules, caller.Subject, needs)
	_, known := r.team(rules)
	excluded := r.Decision.Obligations.ExcludeTeam
	teams := r.teams(rules)
	byProvider := claimed || len(groups) == 0 || excluded && slices.ContainsFunc(teams, func(t string) bool { return rules.Groups[t].Claimed })
	_, stale := b.ClaimsAge(caller)
	switch {
	case r.conflictOfInterest(rules, caller.Subject.ID):
		return nil, refuse(ErrOwnRequest, "you may not decide on a request made by you or for you, or by a workload that you are accountable for")
	case stale && byProvider:
		return nil, refuse(ErrLoginStale, "your groups were last confirmed too long ago: log in again")
	case len(groups) == 0:
		return nil, refuse(ErrNotApprover, "you are in none of the approving groups")
	case excluded && (!known || slices.ContainsFunc(rules.ConflictGroups(caller.Subject), func(g string) bool { return slices.Contains(teams, g) })):
		return nil, refuse(ErrOwnRequest, "policy excludes members of the requester's team")
	}
	d, err := b.decideApproval(ctx, rules, r, caller.Subject, caller.At)
	if err != nil {
		return nil, err
	}
	if !d.Permit {
		return nil, &Refusal{Err: ErrNotApprover, Detail: "policy forbids you to approve this", Reasons: d.Reasons, DeniedBy: DeniedByPolicy, RequestID: r.ID}
	}
	return groups, nil
}

// decideApproval decides whether policy lets a person decide on the request. What policy
// forbids to one account of a person, it forbids to all of them.
func (b *Broker) decideApproval(ctx context.Context, rules *Rules, r *Request, who Identity, now time.Time) (Decision, error) {
	d, err := b.decideQuery(ctx, rules, r.approvalQuery(rules, who), now)
	for _, account := range who.Accounts {
		if err != nil || !d.Permit {
			break
		}
		if account != who.ID {
			d, err = b.decideQuery(ctx, rules, r.approvalQuery(rules, listedPerson(account)), now)
		}
	}
	return d, err
}

// GroupsOfPerson returns the groups that have the person, with any account. The claims of
// the other accounts are not known.
func (r *Rules) GroupsOfPerson(who Identity) []string {
	listed, claimed := r.Policy.Groups(who)
	groups := append(listed, claimed...)
	for _, account := range who.Accounts {
		more, _ := r.Policy.Groups(listedPerson(account))
		groups = append(groups, more...)
	}
	return groups
}

// ConflictGroups is GroupsOfPerson with the memberships that access reviews suspend: a person
// must not become free to decide because a membership is suspended.
func (r *Rules) ConflictGroups(who Identity) []string {
	groups := r.GroupsOfPerson(who)
	suspender, ok := r.Policy.(interface{ SuspendedGroups(who Identity) []string })
	if !ok {
		return groups
	}
	groups = append(groups, suspender.SuspendedGroups(who)...)
	for _, account := range who.Accounts {
		groups = append(groups, suspender.SuspendedGroups(listedPerson(account))...)
	}
	return groups
}

// ClaimsAge returns the age of the person's claims, and whether they are stale:
// older than ClaimsFor although some group has members by claims.
func (b *Broker) ClaimsAge(caller Caller) (age time.Duration, stale bool) {
	who := b.rules.Load().WithLabels(caller.Subject)
	if who.Person == nil || who.Person.Directory != "" { // a directory states the groups at once
		return 0, false
	}
	age = caller.At.Sub(caller.Subject.Person.Claimed)
	if age > ClaimsFor {
		for _, g := range b.rules.Load().Groups {
			stale = stale || g.Claimed
		}
	}
	return age, stale
}

// Vote adds a person's decision to a pending request (POST
// /v1/requests/{id}/approvals). A vote may narrow the grant, never widen it.
// The last approval starts the clock of the grant; the last denial ends the
// request.
func (b *Broker) Vote(ctx context.Context, caller Caller, id RequestID, v Vote) (r *Request, err error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	clock := startClock(caller.At)
	err = b.retry(func() (err error) {
		r, err = b.voteOnce(ctx, caller, id, v, clock)
		return err
	})
	return r, err
}

func (b *Broker) voteOnce(ctx context.Context, caller Caller, id RequestID, v Vote, c clock) (*Request, error) {
	r, rules, err := b.requestToDecide(ctx, &caller, id)
	if err != nil {
		return nil, err
	}
	groups, err := b.authorizeVote(ctx, caller, rules, r, r.Decision.Obligations.Approvals)
	if err != nil {
		return nil, err
	}
	a, err := r.approval(caller, v, groups, rules.Catalogue[r.Entitlement])
	if err != nil {
		return nil, err
	}
	a.Signed = v.Signature != nil
	before := r.Version
	ground, err := b.decisionGround(ctx, rules, caller, r)
	if err != nil {
		return nil, err
	}
	if err := r.vote(a, caller.At); err != nil {
		return nil, err
	}
	if r.Decision.Obligations.Signed && a.Approve && !a.Signed { // last, because a signature would not mend another fault
		return nil, errUnsigned
	}
	if err := b.recordVote(ctx, ballot{caller, rules, r, a, v.Signature, before, ground, c}); err != nil {
		return nil, err
	}
	b.waiters.changed(id)
	if r.Status == RequestApproved {
		b.cfg.Observe(Event{Kind: EventApproved, Entitlement: r.Entitlement, Took: caller.At.Sub(r.Created)})
	}
	return r, nil
}

var errUnsigned = refuse(ErrSignatureRequired, "sign with your passkey in the browser: policy requires it")

// requestToDecide returns a request that the caller may see, and the rules by
// which to decide on it. It labels the caller, and links the accounts of those who
// decided before.
func (b *Broker) requestToDecide(ctx context.Context, caller *Caller, id RequestID) (*Request, *Rules, error) {
	rules := b.rules.Load()
	*caller = caller.labelled(rules)
	r, err := b.Request(ctx, *caller, id)
	if err != nil {
		return nil, nil, err
	}
	r.link(rules.People)
	return r, rules, nil
}

// approval turns a vote into an approval, or refuses an invalid vote.
func (r *Request) approval(caller Caller, v Vote, groups []string, e *Entitlement) (Approval, error) {
	o := r.Decision.Obligations
	a := Approval{
		Person: caller.Subject.ID, Accounts: caller.Subject.Accounts, Groups: groups, Digest: v.Digest, Approve: v.Approve, Comment: v.Comment, Salt: v.salt(),
		Scopes: slices.Sorted(slices.Values(v.Scopes)), TTL: v.TTL, Duration: v.Duration, At: caller.At,
	}
	if err := CheckText(ErrInvalidRequest, "comment", v.Comment, MaxComment); err != nil {
		return a, err
	}
	switch {
	case v.Approve && v.Scopes != nil && len(v.Scopes) == 0:
		// An empty list is not "as requested": the person removed every scope.
		return a, refuse(ErrInvalidScope, "an approval must leave at least one scope: omit scopes to grant the request as it is, or deny it")
	case o.Comment && v.Approve && v.Comment == "":
		return a, refuse(ErrCommentRequired, "state the reason in comment: policy requires it")
	case !o.SilentDenial && !v.Approve && v.Comment == "":
		return a, refuse(ErrCommentRequired, "state in comment why you deny it: the requester reads it")
	case !v.Approve && (v.Scopes != nil || v.TTL != 0 || v.Duration != 0):
		return a, refuse(ErrInvalidRequest, "only an approval can narrow the grant")
	}
	return a, r.checkNarrowing(a, e)
}

// checkNarrowing refuses an approval that widens the request, or shortens its ttl
// below the issuer's minimum.
func (r *Request) checkNarrowing(a Approval, e *Entitlement) error {
	var shortest time.Duration
	if e != nil {
		shortest = e.MinTTL
	}
	for i, s := range a.Scopes {
		if !slices.Contains(r.Scopes, s) || i > 0 && a.Scopes[i-1] == s {
			return refuse(ErrInvalidScope, "an approval may name only requested scopes, each once")
		}
	}
	switch {
	case a.TTL < 0 || a.TTL > r.TTL || a.TTL%time.Second != 0:
		return refuse(ErrInvalidTTL, "an approval may only shorten ttl: at most "+FormatDuration(r.TTL))
	case a.TTL > 0 && a.TTL < shortest:
		return refuse(ErrInvalidTTL, "ttl is shorter than the issuer's minimum: at least "+FormatDuration(shortest))
	case a.Duration < 0 || a.Duration > r.Duration || a.Duration%time.Second != 0:
		return refuse(ErrInvalidTTL, "an approval may only shorten duration: at most "+FormatDuration(r.Duration))
	}
	return nil
}

// A ballot is a vote or a verdict that is not recorded yet.
type ballot struct {
	caller    Caller
	rules     *Rules   // by which it was prepared
	request   *Request // with the ballot
	approval  Approval
	signature *audit.SignatureFacts // nil: unsigned
	before    int                   // the version of the request without the ballot
	ground    footing               // of the person, and of a pending request
	clock     clock
}

// recordVote writes a vote and its effect in one transaction with its record. The
// vote counts only if the request is still pending, no matter how long the call
// took.
func (b *Broker) recordVote(ctx context.Context, v ballot) error {
	r := v.request
	record := audit.Record{
		Kind: audit.ApprovalGiven, Approval: v.approval.facts(),
		Request: &audit.RequestFacts{ID: r.ID.String(), Digest: r.Digest, Entitlement: r.Entitlement, Scopes: r.Scopes},
	}
	switch r.Status {
	case RequestApproved:
		record.Kind = audit.RequestApproved
	case RequestDenied:
		record.Kind = audit.RequestDenied
	}
	return b.recordBallot(ctx, v, record, record.Approval.Challenge, r.waiting(), func(tx Tx, stored *Request) error {
		if err := stored.checkPending(tx, v.clock.now()); err != nil {
			return err
		}
		if r.Status == RequestPending {
			return nil
		}
		if err := leavePending(tx, r, v.caller.At); err != nil {
			return err
		}
		b.notify(tx, decisionNotice(r), r, r.approverGroups(), v.rules, v.caller.At)
		return nil
	})
}

// recordBallot writes a vote or a verdict with its record. It returns
// errOvertaken if the request or the rules were changed since the ballot was
// prepared. The signature is verified here, where the person's passkeys cannot
// change any more.
func (b *Broker) recordBallot(ctx context.Context, v ballot, record audit.Record, challenge challenge, reads []Key, apply func(tx Tx, stored *Request) error) error {
	record.Caller, record.Openings, record.Signature = v.caller.Actor.Party(), v.approval.openings(), v.signature
	memberships, texts := v.rules.memberships(v.caller.Subject, v.request, v.approval.Groups)
	if len(texts) > 0 {
		record.Directory = &audit.DirectoryFacts{Memberships: texts}
	}
	reads = append(append(reads, PersonKey(v.caller.Subject.ID), RevisionKey{}), v.ground.reads()...)
	reads = append(reads, keys(memberships)...)
	_, err := b.write(ctx, reads, record, func(tx Tx) error {
		if err := v.verify(tx, challenge); err != nil {
			return err
		}
		stored, err := Get[*Request](tx, v.request.ID)
		if err != nil {
			return err
		}
		if err := errors.Join(b.checkRevision(tx, v.rules.Revision, v.caller.At), v.ground.check(tx), checkMemberships(tx, memberships)); err != nil {
			return err
		}
		if stored.Version != v.before {
			return errOvertaken
		}
		if err := apply(tx, stored); err != nil {
			return err
		}
		tx.Put(v.request)
		return nil
	})
	return err
}

// verify verifies the signature of a ballot, if there is one.
func (v *ballot) verify(tx Tx, challenge challenge) error {
	if v.signature == nil {
		return nil
	}
	account, err := AccountOf(tx, PersonKey(v.caller.Subject.ID))
	if err != nil {
		return err
	}
	if err := account.Verify(v.signature, challenge(v.caller.Subject.ID, v.request.ID.String(), v.signature.Nonce), v.caller.At); err != nil {
		return err
	}
	tx.Put(account)
	return nil
}

// waiting returns the keys of the rows that exist because the request is
// pending.
func (r *Request) waiting() []Key {
	return []Key{r.ID, pendingKey(r.Requester), AskKey(r.askDigest())}
}

// checkPending refuses a vote on a request that is no longer pending. The row
// of the open ask names another request only after this one's time is over.
func (r *Request) checkPending(tx Tx, now time.Time) error {
	open, err := Get[*OpenAsk](tx, AskKey(r.askDigest()))
	switch {
	case ignoreNotFound(err) != nil:
		return err
	case err != nil, open.Request != r.ID, r.State(now) != RequestPending:
		return &Refusal{Err: ErrNotPending, Detail: "it is no longer pending", RequestID: r.ID}
	}
	return nil
}

// isOpen reports whether the request is pending or granted.
func (r *Request) isOpen(now time.Time) bool {
	state := r.State(now)
	return state == RequestPending || state == RequestApproved
}

// leavePending releases the place that a pending request had. The row of the
// open ask lasts as long as the grant, so that an identical ask reuses it.
func leavePending(tx Tx, r *Request, now time.Time) error {
	c, err := counter(tx, pendingKey(r.Requester))
	if err != nil {
		return err
	}
	c.release(r.ID.String())
	tx.Put(c)
	ask := AskKey(r.askDigest())
	if open, err := Get[*OpenAsk](tx, ask); err != nil || open.Request != r.ID {
		return ignoreNotFound(err) // a later identical request has the row
	}
	until := now
	if r.Status == RequestApproved {
		until = r.CollectUntil
	}
	tx.Put(&OpenAsk{AskKey: ask, Request: r.ID, Expires: until})
	return nil
}

// approverGroups returns the groups whose approval is required.
func (r *Request) approverGroups() (names []string) {
	for _, need := range r.Decision.Obligations.Approvals {
		names = append(names, need.Group)
	}
	return names
}
