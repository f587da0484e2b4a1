package broker

import (
	"context"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// ClaimsFor is how long what a provider says of a person's groups is good
// enough to vote by.
const ClaimsFor = 15 * time.Minute

// bars says whether somebody may never approve the request: who asked, and who
// answers for the workload that did, or answered for it then. Nothing lifts that.
func (r *Request) conflictOfInterest(rules *Rules, person string) bool {
	return person == r.Requester.ID || slices.Contains(r.Requester.Accountable, person) ||
		slices.Contains(rules.WithLabels(r.Requester).Accountable, person)
}

// team gives the listed members of the requester's team; false: nobody can tell
// who is in it, because it has none, or one that is no group.
func (r *Request) team(rules *Rules) (members []string, known bool) {
	g, known := rules.Groups[r.Requester.Team]
	return g.Members, known
}

// approvable refuses a request that nobody could approve, before anybody waits,
// and one that breaks a glass which nobody could review.
func (b *Broker) checkApprovable(ctx context.Context, rules *Rules, r *Request, now time.Time) error {
	o := r.Decision.Obligations
	if len(o.Approvals) > 0 && r.Requester.Kind != KindPerson && len(r.Requester.Accountable) == 0 {
		return refuse(ErrNobodyAccountable, "people approve only for workloads that somebody answers for: ask the operators to name the accountable people")
	}
	if err := b.checkQuorum(ctx, rules, r, o.Approvals, now); err != nil || !r.BreakGlass {
		return err
	}
	return b.checkQuorum(ctx, rules, r, o.Review, now)
}

// maxAsked bounds of how many people policy is asked, when a request is filed,
// whether it forbids that they approve it. The rest are taken to be allowed to:
// then only their vote is refused.
const maxAsked = 50

// staffed refuses what more people would have to speak of than there are who
// may, as far as that is known beforehand: of groups whose people are all listed,
// and of what policy forbids them for good.
func (b *Broker) checkQuorum(ctx context.Context, rules *Rules, r *Request, needs []ApprovalNeed, now time.Time) error {
	if _, known := r.team(rules); r.Decision.Obligations.ExcludeTeam && !known && len(needs) > 0 {
		return refuse(ErrNobodyCanApprove, "policy wants people from outside of the requester's team, and nobody can tell who is in that: ask the operators to give it a team that is a group")
	}
	closed, all := r.listed(rules, needs)
	if _, full := assignApprovers(closed, all); !full {
		return refuse(ErrNobodyCanApprove, "policy wants more people to approve, or to review, than there are who may: ask the operators")
	}
	if len(closed) == 0 {
		return nil
	}
	var able []Approval
	for i, a := range all {
		if i == maxAsked {
			return nil
		}
		d, err := b.ask(ctx, rules, r.approvalQuery(rules, listedPerson(a.Person)), now)
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
	return refuse(ErrNobodyCanApprove, "policy wants more people to approve, or to review, than there are whom it lets: ask the operators")
}

// listed gives those of the needs whose people are all listed, and these people,
// but for those who may never speak of the request.
func (r *Request) listed(rules *Rules, needs []ApprovalNeed) (closed []ApprovalNeed, all []Approval) {
	team, _ := r.team(rules)
	for _, need := range needs {
		members := rules.Groups[need.Group].Members
		if need.Group == GroupManager {
			members = r.manager()
		} else if rules.Groups[need.Group].Claimed {
			continue // nobody can tell how many there are
		}
		closed = append(closed, need)
		for _, person := range members {
			if r.conflictOfInterest(rules, person) || r.Decision.Obligations.ExcludeTeam && slices.Contains(team, person) {
				continue
			}
			i := slices.IndexFunc(all, func(a Approval) bool { return a.Person == person })
			if i < 0 {
				i, all = len(all), append(all, Approval{Person: person, Approve: true})
			}
			all[i].Groups = append(all[i].Groups, need.Group)
		}
	}
	return closed, all
}

// listedPerson is somebody of whom nothing is known but that they are listed.
func listedPerson(id string) Identity {
	provider, _, _ := strings.Cut(id, "/")
	return Identity{ID: id, Kind: KindPerson, Person: &Person{Provider: provider}}
}

// approvalQuery asks whether something forbids that somebody approves, or
// reviews, the request: the same when it is filed and when they do.
func (r *Request) approvalQuery(rules *Rules, who Identity) Query {
	return Query{Principal: who, Action: ActionApprove, Request: r, Entitlement: rules.Catalogue[r.Entitlement]}
}

// manager is who the requester's provider says is its manager.
func (r *Request) manager() []string {
	if r.Requester.Person == nil || r.Requester.Person.Manager == "" {
		return nil
	}
	return []string{r.Requester.Person.Manager}
}

// seats gives those of the needed groups that a person may speak for, and
// whether that rests on what the provider says of it.
func (r *Request) seats(rules *Rules, who Identity, needs []ApprovalNeed) (groups []string, claimed bool) {
	listed, byClaim := rules.Policy.Groups(who)
	for _, need := range needs {
		switch {
		case need.Group == GroupManager && slices.Contains(r.manager(), who.ID), slices.Contains(listed, need.Group):
			groups = append(groups, need.Group)
		case slices.Contains(byClaim, need.Group):
			groups, claimed = append(groups, need.Group), true
		}
	}
	return groups, claimed
}

// mayVote says which groups a person speaks for, or why for none. Where it rests
// on what a provider said, or did not say, that is of now. Who is listed votes
// while their provider is away.
func (b *Broker) mayVote(ctx context.Context, caller Caller, rules *Rules, r *Request, needs []ApprovalNeed) ([]string, error) {
	groups, claimed := r.seats(rules, caller.Subject, needs)
	listed, byClaim := rules.Policy.Groups(caller.Subject)
	_, known := r.team(rules)
	excluded := r.Decision.Obligations.ExcludeTeam
	byProvider := claimed || len(groups) == 0 || excluded && rules.Groups[r.Requester.Team].Claimed
	_, stale := b.ClaimsAge(caller)
	switch {
	case r.conflictOfInterest(rules, caller.Subject.ID):
		return nil, refuse(ErrOwnRequest, "nobody approves what they asked for, or what was asked by a workload that they answer for")
	case stale && byProvider:
		return nil, refuse(ErrLoginStale, "your groups were last confirmed too long ago: log in again")
	case len(groups) == 0:
		return nil, refuse(ErrNotApprover, "you are in none of the groups that are asked")
	case excluded && (!known || slices.Contains(append(listed, byClaim...), r.Requester.Team)):
		return nil, refuse(ErrOwnRequest, "policy wants somebody from outside of the requester's team")
	}
	d, err := b.ask(ctx, rules, r.approvalQuery(rules, caller.Subject), caller.At)
	if err != nil {
		return nil, err
	}
	if !d.Permit {
		return nil, &Refusal{Err: ErrNotApprover, Detail: "policy forbids that you approve this", Reasons: d.Reasons, DeniedBy: DeniedByPolicy, RequestID: r.ID}
	}
	return groups, nil
}

// ClaimsAge returns the age of the person's claims, and whether they are stale:
// older than ClaimsFor although some group has members by claims.
func (b *Broker) ClaimsAge(caller Caller) (age time.Duration, stale bool) {
	if caller.Subject.Person == nil {
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

// Vote puts a person's yes or no to a pending request (POST
// /v1/requests/{id}/approvals). It may be narrowed and never widened. The vote
// that settles the request starts the clock of the grant, or ends the request.
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
	r, rules, err := b.forApprover(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	groups, err := b.mayVote(ctx, caller, rules, r, r.Decision.Obligations.Approvals)
	if err != nil {
		return nil, err
	}
	a, err := r.approval(caller, v, groups, rules.Catalogue[r.Entitlement])
	if err != nil {
		return nil, err
	}
	if a.Signed = v.Signature != nil; r.Decision.Obligations.Signed && a.Approve && !a.Signed {
		return nil, errUnsigned
	}
	before := r.Version
	if err := r.vote(a, caller.At); err != nil {
		return nil, err
	}
	if err := b.settle(ctx, ballot{caller, r, a, v.Signature, before, c}, rules); err != nil {
		return nil, err
	}
	b.waiters.changed(id)
	if r.Status == RequestApproved {
		b.cfg.Observe(Event{Kind: EventApproved, Entitlement: r.Entitlement, Took: caller.At.Sub(r.Created)})
	}
	return r, nil
}

var errUnsigned = refuse(ErrSignatureRequired, "sign it with your passkey, in the browser: policy requires that")

// forApprover gives a request that the person is asked about, or may view.
func (b *Broker) forApprover(ctx context.Context, caller Caller, id RequestID) (*Request, *Rules, error) {
	rules := b.rules.Load()
	r, err := b.Request(ctx, caller, id)
	return r, rules, err
}

// approval makes a vote an approval, or refuses what may not be said.
func (r *Request) approval(caller Caller, v Vote, groups []string, e *Entitlement) (Approval, error) {
	o := r.Decision.Obligations
	a := Approval{
		Person: caller.Subject.ID, Groups: groups, Digest: v.Digest, Approve: v.Approve, Comment: v.Comment, Salt: v.salt(),
		Scopes: slices.Sorted(slices.Values(v.Scopes)), TTL: v.TTL, Duration: v.Duration, At: caller.At,
	}
	if err := checkText(ErrInvalidRequest, "comment", v.Comment, MaxComment); err != nil {
		return a, err
	}
	switch {
	case v.Approve && v.Scopes != nil && len(v.Scopes) == 0:
		// Not "as asked": whoever takes every scope away means none of them.
		return a, refuse(ErrInvalidScope, "an approval leaves something: leave scopes out to grant what was asked, or deny it")
	case o.Comment && v.Approve && v.Comment == "":
		return a, refuse(ErrCommentRequired, "say why you approve: policy requires a comment")
	case !v.Approve && (v.Scopes != nil || v.TTL != 0 || v.Duration != 0):
		return a, refuse(ErrInvalidRequest, "only an approval can narrow")
	}
	return a, r.mayNarrow(a, e)
}

// mayNarrow refuses an approval that widens, or that leaves nothing.
func (r *Request) mayNarrow(a Approval, e *Entitlement) error {
	var shortest time.Duration
	if e != nil {
		shortest = e.MinTTL
	}
	for i, s := range a.Scopes {
		if !slices.Contains(r.Scopes, s) || i > 0 && a.Scopes[i-1] == s {
			return refuse(ErrInvalidScope, "an approval may name some of the scopes that were asked for, each once, and no others")
		}
	}
	switch {
	case a.TTL < 0 || a.TTL > r.TTL || a.TTL%time.Second != 0:
		return refuse(ErrInvalidTTL, "an approval may shorten ttl and not lengthen it: at most "+FormatDuration(r.TTL))
	case a.TTL > 0 && a.TTL < shortest:
		return refuse(ErrInvalidTTL, "its issuer's shortest credential is longer: at least "+FormatDuration(shortest))
	case a.Duration < 0 || a.Duration > r.Duration || a.Duration%time.Second != 0:
		return refuse(ErrInvalidTTL, "an approval may shorten duration and not lengthen it: at most "+FormatDuration(r.Duration))
	}
	return nil
}

// A ballot is a vote, or a verdict, that was taken, and not written yet.
type ballot struct {
	caller    Caller
	r         *Request // with it
	a         Approval
	signature *audit.SignatureFacts // nil: unsigned
	before    int                   // the request's version without it
	clock     clock
}

// settle writes a vote, and what it leads to, in one transaction with its one
// record. Whoever else changed the request, or the rules, meanwhile was first:
// errOvertaken. What is signed is verified here, where the person's passkeys can't
// change any more; and that the request still waits, however long it took to get
// here.
func (b *Broker) settle(ctx context.Context, v ballot, rules *Rules) error {
	r, now := v.r, v.caller.At
	record := audit.Record{
		Kind: audit.ApprovalGiven, Caller: v.caller.Actor.Party(), Approval: v.a.facts(), Openings: v.a.openings(), Signature: v.signature,
		Request: &audit.RequestFacts{ID: r.ID.String(), Digest: r.Digest, Entitlement: r.Entitlement, Scopes: r.Scopes},
	}
	switch r.Status {
	case RequestApproved:
		record.Kind = audit.RequestApproved
	case RequestDenied:
		record.Kind = audit.RequestDenied
	}
	_, err := b.write(ctx, append(r.waiting(), PersonKey(v.caller.Subject.ID), RevisionKey{}), record, func(tx Tx) error {
		if err := v.verify(tx, record.Approval.Challenge); err != nil {
			return err
		}
		stored, err := Get[*Request](tx, r.ID)
		if err != nil {
			return err
		}
		if err := checkRevision(tx, rules.Revision); err != nil {
			return err
		}
		if stored.Version != v.before {
			return errOvertaken
		}
		if err := stored.stillWaits(tx, v.clock.now()); err != nil {
			return err
		}
		if r.Status != RequestPending {
			if err := leavePending(tx, r, now); err != nil {
				return err
			}
			b.notify(tx, decisionNotice(r), r, r.askedGroups(), rules, now)
		}
		tx.Put(r)
		return nil
	})
	return err
}

// verify verifies the signature of a ballot, if it has one: of the challenge of
// its kind.
func (v *ballot) verify(tx Tx, challenge challenge) error {
	if v.signature == nil {
		return nil
	}
	account, err := AccountOf(tx, PersonKey(v.caller.Subject.ID))
	if err != nil {
		return err
	}
	if err := account.Verify(v.signature, challenge(v.caller.Subject.ID, v.r.ID.String(), v.signature.Nonce), v.caller.At); err != nil {
		return err
	}
	tx.Put(account)
	return nil
}

// waiting names the rows that a waiting request is held by.
func (r *Request) waiting() []Key {
	return []Key{r.ID, pendingKey(r.Requester.ID), AskKey(r.askDigest())}
}

// stillWaits refuses a vote on a request that waits no more: its time is over, or
// an identical one took its place, which happens only after that.
func (r *Request) stillWaits(tx Tx, now time.Time) error {
	open, err := Get[*OpenAsk](tx, AskKey(r.askDigest()))
	switch {
	case ignoreNotFound(err) != nil:
		return err
	case err != nil, open.Request != r.ID, r.State(now) != RequestPending:
		return &Refusal{Err: ErrNotPending, Detail: "it is no longer waiting for anybody", RequestID: r.ID}
	}
	return nil
}

// open says whether the request is still waiting, or granted.
func (r *Request) open(now time.Time) bool {
	state := r.State(now)
	return state == RequestPending || state == RequestApproved
}

// leavePending gives back what a request held while it waited. An identical ask
// finds it as long as its grant lasts.
func leavePending(tx Tx, r *Request, now time.Time) error {
	c, err := counter(tx, pendingKey(r.Requester.ID))
	if err != nil {
		return err
	}
	c.release(r.ID.String())
	tx.Put(c)
	ask := AskKey(r.askDigest())
	if open, err := Get[*OpenAsk](tx, ask); err != nil || open.Request != r.ID {
		return ignoreNotFound(err) // an identical one took its place
	}
	until := now
	if r.Status == RequestApproved {
		until = r.CollectUntil
	}
	tx.Put(&OpenAsk{AskKey: ask, Request: r.ID, Expires: until})
	return nil
}

// askedGroups are the groups whose approval was asked for.
func (r *Request) askedGroups() (names []string) {
	for _, need := range r.Decision.Obligations.Approvals {
		names = append(names, need.Group)
	}
	return names
}
