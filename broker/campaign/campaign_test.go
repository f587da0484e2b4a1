package campaign_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/campaign"
)

func TestReviewersOfACampaign(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	if c.Counts.Items != 3 || c.Counts.Open != 3 || !c.Deadline.Equal(noon.Add(14*day)) {
		t.Fatalf("got %+v", c)
	}
	for permission, want := range map[string]struct {
		reviewer string
		fallback bool
	}{
		"permit agents":    {"group support", false}, // of the entitlement's owner, ben remains: ana is accountable for the agents
		"permit dba-own":   {"group security", true}, // the owner is under review itself
		"permit dba-audit": {"group security", true}, // on the broker: no entitlement, no owner
	} {
		if i := w.item(c, permission, noon); i.Reviewer.String() != want.reviewer || i.Fallback != want.fallback {
			t.Errorf("%s: got %s, fallback %v, want %+v", permission, i.Reviewer, i.Fallback, want)
		}
	}
}

// The reviewer is never the identity under review, nor accountable for it: not through a
// group, another account or a claim.
func TestSubjectsNeverReview(t *testing.T) {
	w := newWorld(t, reviews)
	w.aliases = [][]string{{"login/dan", "other/dan"}, {"login/ana", "other/ana"}}
	w.files["groups.yaml"] = &fstest.MapFile{Data: []byte(strings.Replace(groups, "security: {members: [", "security: {members: [login/dan, other/dan, ", 1) + "\n")}
	w.files["groups.yaml"].Data = []byte(strings.Replace(string(w.files["groups.yaml"].Data), "login/ana, login/ben]", "login/ana, other/ana, login/ben]", 1))
	w.files["a.cedar"] = &fstest.MapFile{Data: []byte(cedar + `@id("staff") permit (principal in Group::"claimed", action == Action::"request", resource == Entitlement::"tickets-api");`)}
	w.reload(noon)
	c := w.begin("quarterly", noon)
	for name, test := range map[string]struct {
		who    broker.Caller
		permit string
		want   error
	}{
		"a member of the group under review, in the fallback group": {person("login/dan", noon), "permit dba-own", broker.ErrOwnAccess},
		"the same person with another account":                      {person("other/dan", noon), "permit dba-own", broker.ErrOwnAccess},
		"the person accountable for the agents":                     {person("login/ana", noon), "permit agents", broker.ErrOwnAccess},
		"the accountable person with another account":               {person("other/ana", noon), "permit agents", broker.ErrOwnAccess},
		"a member of the group under review by a claim":             {person("login/ben", noon, "staff"), "permit staff", broker.ErrOwnAccess},
		"a member of no reviewing group":                            {person("login/eve", noon), "permit agents", broker.ErrNotFound},
		"a member of another group":                                 {person("login/cleo", noon), "permit agents", broker.ErrNotReviewer},
		"a caller without a session":                                {operator(noon), "permit agents", broker.ErrSessionRequired},
	} {
		t.Run(name, func(t *testing.T) {
			err := w.decide(test.who, w.item(c, test.permit, noon), broker.VerdictKeep)
			if test.want == broker.ErrNotFound {
				test.want = broker.ErrNotReviewer // the page hides it; the decision is refused
			}
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	if err := w.decide(person("login/ben", noon), w.item(c, "permit staff", noon), broker.VerdictKeep); err != nil {
		t.Errorf("a member of the owner who is not under review: %v", err)
	}
	if err := w.decide(person("login/sam", noon), w.item(c, "permit dba-own", noon), broker.VerdictKeep); err != nil {
		t.Errorf("the fallback group: %v", err)
	}
}

// If everyone in the fallback group uses a permission, no one may review it, and the page says
// so.
func TestItemsThatNoOneMayReview(t *testing.T) {
	w := newWorld(t, "members:\n  scope: {groups: [security]}\n  reviewers: [owner]\n  fallback: security\n  deadline: 7d\n")
	w.files["groups.yaml"] = &fstest.MapFile{Data: []byte(strings.Replace(groups, "login/sam, login/sue", "login/sam", 1))}
	w.reload(noon)
	c := w.begin("members", noon)
	i := w.item(c, "member security login/sam", noon)
	if i.MayDecide || !strings.HasPrefix(i.Why, "no one may review this") {
		t.Errorf("got %+v", i)
	}
	w.refused(w.decide(person("login/sam", noon), i, broker.VerdictKeep), broker.ErrOwnAccess)
}

func TestDecisionsTakeEffectAtOnce(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	agents, ben := "spiffe://acme.test/agent/triage", person("login/ben", noon.Add(time.Hour))
	before := w.broker.Rules().Revision
	w.ok(w.decide(ben, w.item(c, "permit agents", noon), broker.VerdictNarrow, "read"))
	if !w.permits(agents, "tickets-api", "read") || w.permits(agents, "tickets-api", "close") {
		t.Error("narrowed to read, but read is denied or close is permitted")
	}
	if w.broker.Rules().Revision == before || w.broker.Rules().Base != before {
		t.Error("the revision does not show the suspension")
	}
	w.refused(w.decide(ben, w.item(c, "permit agents", noon), broker.VerdictKeep), broker.ErrAlreadyVoted)
	w.ok(w.decide(person("login/sam", noon), w.item(c, "permit dba-own", noon), broker.VerdictEnd))
	if w.permits("login/cleo", "orders-db", "read") {
		t.Error("an ended permit still permits")
	}
	w.ok(w.decide(person("login/sam", noon), w.item(c, "permit dba-audit", noon), broker.VerdictKeep))
	w.tick(noon.Add(time.Minute))
	if c := w.campaign(c.ID, noon); c.Status != broker.CampaignClosed || c.Counts != (broker.CampaignCounts{Items: 3, Kept: 1, Narrowed: 1, Ended: 1}) {
		t.Errorf("after the last decision: %+v", c)
	}
	list := w.records(audit.CampaignDecided)
	if len(list) != 3 || list[0].Campaign.Verdict != "narrow" || !slices.Equal(list[0].Campaign.Left, []string{"read"}) || list[0].Caller.ID != "login/ben" || list[0].Campaign.Reason.IsZero() {
		t.Errorf("got records %+v", list)
	}
	// What a later campaign leaves never exceeds what an earlier one left.
	c = w.begin("quarterly", noon.Add(day))
	if c.Counts.Items != 2 {
		t.Errorf("got %d items, want 2: what is ended is not reviewed again", c.Counts.Items)
	}
	w.ok(w.decide(person("login/ben", noon.Add(day)), w.item(c, "permit agents", noon.Add(day)), broker.VerdictNarrow, "read", "close"))
	if w.permits(agents, "tickets-api", "close") {
		t.Error("one person widened what another campaign had narrowed")
	}
}

func TestIncompleteDecisionsAreRefused(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	i := w.item(c, "permit agents", noon)
	for name, test := range map[string]struct {
		d    campaign.Decision
		want error
	}{
		"without a reason":           {campaign.Decision{Verdict: broker.VerdictKeep, Digest: i.Digest}, broker.ErrCommentRequired},
		"with spaces as the reason":  {campaign.Decision{Verdict: broker.VerdictKeep, Digest: i.Digest, Reason: " "}, broker.ErrCommentRequired},
		"with a hidden character":    {campaign.Decision{Verdict: broker.VerdictKeep, Digest: i.Digest, Reason: "a\u202eb"}, broker.ErrInvalidRequest},
		"with another verdict":       {campaign.Decision{Verdict: "maybe", Digest: i.Digest, Reason: "x"}, broker.ErrInvalidRequest},
		"narrow to nothing":          {campaign.Decision{Verdict: broker.VerdictNarrow, Digest: i.Digest, Reason: "x"}, broker.ErrInvalidRequest},
		"narrow to everything":       {campaign.Decision{Verdict: broker.VerdictNarrow, Digest: i.Digest, Reason: "x", Left: []string{"read", "close", "comment"}}, broker.ErrInvalidRequest},
		"narrow to an unknown scope": {campaign.Decision{Verdict: broker.VerdictNarrow, Digest: i.Digest, Reason: "x", Left: []string{"write"}}, broker.ErrInvalidRequest},
		"keep with parts":            {campaign.Decision{Verdict: broker.VerdictKeep, Digest: i.Digest, Reason: "x", Left: []string{"read"}}, broker.ErrInvalidRequest},
		"of another digest":          {campaign.Decision{Verdict: broker.VerdictKeep, Reason: "x"}, broker.ErrStaleDigest},
	} {
		if _, err := w.reviews.Decide(context.Background(), person("login/ben", noon), i.ReviewItemKey, test.d); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
	if len(w.records(audit.CampaignDecided)) != 0 {
		t.Error("a refused decision is recorded")
	}
}

// A decision is bound to the permission as shown: after a change in git, it is refused.
func TestDecisionOnAStaleDigestIsRefused(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	seen := w.item(c, "permit agents", noon)
	w.files["a.cedar"] = &fstest.MapFile{Data: []byte(strings.Replace(cedar, `resource == Entitlement::"tickets-api"`, `resource`, 1))}
	w.reload(noon)
	w.refused(w.decide(person("login/ben", noon), seen, broker.VerdictKeep), broker.ErrStaleDigest)
	// A bulk decision with one stale item keeps nothing.
	_, err := w.reviews.KeepAll(context.Background(), person("login/sam", noon), c.ID, []campaign.Seen{{Number: w.item(c, "permit dba-own", noon).Number, Digest: w.item(c, "permit dba-own", noon).Digest}, {Number: seen.Number, Digest: seen.Digest}}, "fine")
	w.refused(err, broker.ErrStaleDigest)
	if n := len(w.records(audit.CampaignDecided)); n != 0 {
		t.Errorf("%d decisions were recorded", n)
	}
	// The item now covers entitlements of two owners, so the fallback group decides.
	w.tick(noon.Add(time.Second))
	fresh := w.item(c, "permit agents", noon)
	if fresh.Reviewer.String() != "group security" || fresh.ReviewItem.Digest != fresh.Digest {
		t.Errorf("after the change: %s, digest as shown %v", fresh.Reviewer, fresh.ReviewItem.Digest == fresh.Digest)
	}
	w.ok(w.decide(person("login/sam", noon), fresh, broker.VerdictKeep))
}

func TestUnreviewedIsDisabledAtTheDeadline(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	w.ok(w.decide(person("login/ben", noon), w.item(c, "permit agents", noon), broker.VerdictKeep))
	agents := "spiffe://acme.test/agent/triage"
	w.tick(c.Deadline.Add(-time.Second))
	if !w.permits("login/cleo", "orders-db", "read") {
		t.Error("disabled before the deadline")
	}
	w.tick(c.Deadline)
	if w.permits("login/cleo", "orders-db", "read") || !w.permits(agents, "tickets-api", "read") {
		t.Error("the unreviewed permit still permits, or the reviewed one does not")
	}
	if c := w.campaign(c.ID, noon); c.Status != broker.CampaignClosed || c.Counts.Disabled != 2 || c.Counts.Kept != 1 {
		t.Errorf("got %+v", c)
	}
	if n := len(w.records(audit.CampaignDisabled)); n != 2 {
		t.Errorf("got %d records of disabled items, want 2", n)
	}
	w.refused(w.decide(person("login/sam", c.Deadline), w.item(c, "permit dba-own", c.Deadline), broker.VerdictKeep), broker.ErrReviewEnded)
	revision := w.broker.Rules().Revision
	w.tick(c.Deadline.Add(time.Hour))
	if w.broker.Rules().Revision != revision {
		t.Error("the revision changed without a reason")
	}
}

// No decision counts after the deadline, even before the loop has closed the campaign.
func TestDecisionAtTheDeadlineIsRefused(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	i := w.item(c, "permit agents", noon)
	w.refused(w.decide(person("login/ben", c.Deadline), i, broker.VerdictKeep), broker.ErrReviewEnded)
	w.ok(w.decide(person("login/ben", c.Deadline.Add(-time.Nanosecond)), i, broker.VerdictKeep))
}

// The deadline passes while the broker is down: the first rules in force after the start leave
// out what no one reviewed.
func TestDeadlineThatPassedWhileDown(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	w.stop()
	w.start(c.Deadline.Add(time.Hour))
	if w.permits("spiffe://acme.test/agent/triage", "tickets-api", "read") {
		t.Error("an unreviewed permit permits after the start")
	}
	first := w.records(audit.PolicyLoaded)
	if last := first[len(first)-1]; last.Rules.Files["suspensions.json"].IsZero() || len(first) != 2 {
		t.Errorf("the rules that the start recorded lack the suspensions: %d records", len(first))
	}
	if c := w.campaign(c.ID, c.Deadline); c.Status != broker.CampaignClosed || c.Counts.Disabled != 3 {
		t.Errorf("got %+v", c)
	}
}

// The owner is deleted in the middle: the items go to the fallback group.
func TestOwnerIsDeletedInTheMiddle(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	w.left["login/ben"] = true // ana is accountable for the agents, so no one of support remains
	w.tick(noon.Add(2 * time.Minute))
	i := w.item(c, "permit agents", noon)
	if i.Reviewer.String() != "group security" || !i.Fallback {
		t.Fatalf("got reviewer %s", i.Reviewer)
	}
	if list := w.records(audit.CampaignAssigned); len(list) != 1 || list[0].Campaign.Reviewer != "group security" {
		t.Errorf("got records %+v", list)
	}
	w.refused(w.decide(person("login/ben", noon), i, broker.VerdictKeep), broker.ErrNotReviewer)
	w.ok(w.decide(person("login/sue", noon), i, broker.VerdictKeep))
	// A permit that git removed is nothing to decide on.
	w.files["a.cedar"] = &fstest.MapFile{Data: []byte(strings.Split(cedar, "\n")[1] + "\n" + strings.Split(cedar, "\n")[3])}
	w.reload(noon)
	w.tick(noon.Add(3 * time.Minute))
	if got := w.item(c, "permit dba-own", noon); got.Status != broker.ReviewGone {
		t.Errorf("got status %s", got.Status)
	}
	if c := w.campaign(c.ID, noon); c.Counts.Gone != 1 || c.Counts.Waiting() != 1 {
		t.Errorf("got %+v", c.Counts)
	}
}

func TestManagersReview(t *testing.T) {
	w := newWorld(t, "members:\n  scope: {groups: [dba]}\n  reviewers: [manager]\n  fallback: security\n  deadline: 7d\n")
	w.manager["login/cleo"] = "login/max"
	w.manager["login/dan"] = "login/dan" // a cycle: no one reviews their own membership
	c := w.begin("members", noon)
	cleo, dan := w.item(c, "member dba login/cleo", noon), w.item(c, "member dba login/dan", noon)
	if cleo.Reviewer.String() != "person login/max" || dan.Reviewer.String() != "group security" {
		t.Fatalf("got %s and %s", cleo.Reviewer, dan.Reviewer)
	}
	w.refused(w.decide(person("login/dan", noon), dan, broker.VerdictKeep), broker.ErrOwnAccess)
	w.refused(w.decide(person("login/max", noon), cleo, broker.VerdictNarrow, "x"), broker.ErrInvalidRequest)
	w.ok(w.decide(person("login/max", noon), cleo, broker.VerdictEnd))
	if w.permits("login/cleo", "orders-db", "read") || !w.permits("login/dan", "orders-db", "read") {
		t.Error("the ended membership still counts, or the other one does not")
	}
	w.left["login/max"] = true
	w.tick(c.Deadline)
	if w.permits("login/dan", "orders-db", "read") {
		t.Error("an unreviewed membership still counts")
	}
}

func TestBulkDecisionsAskForASecondLook(t *testing.T) {
	var members []string
	for n := range 25 {
		members = append(members, "login/p"+string(rune('a'+n)))
	}
	w := newWorld(t, "members:\n  scope: {groups: [many]}\n  reviewers: [security]\n  fallback: security\n  deadline: 7d\n")
	w.files["groups.yaml"] = &fstest.MapFile{Data: []byte(strings.Replace(groups, "many: {}", "many: {members: ["+strings.Join(members, ", ")+"]}", 1))}
	w.reload(noon)
	c := w.begin("members", noon)
	ctx, sam := context.Background(), person("login/sam", noon)
	list, _, err := w.reviews.Items(ctx, sam, c.ID, campaign.ItemQuery{Mine: true})
	w.ok(err)
	var seen []campaign.Seen
	for _, i := range list {
		seen = append(seen, campaign.Seen{Number: i.Number, Digest: i.Digest})
	}
	second, err := w.reviews.KeepAll(ctx, sam, c.ID, seen, "all of them still work here")
	w.ok(err)
	if len(second) != 3 { // a tenth of 25, rounded up
		t.Fatalf("got %d second looks, want 3", len(second))
	}
	decided := w.records(audit.CampaignDecided)
	if len(decided) != 25 {
		t.Fatalf("got %d records, want 25", len(decided))
	}
	var numbers, chosen []int64
	for _, r := range decided {
		if r.Campaign.Items != 25 || r.Campaign.Seed != decided[0].Campaign.Seed || r.Campaign.Seed.IsZero() {
			t.Fatalf("the record does not show a decision in bulk: %+v", r.Campaign)
		}
		numbers = append(numbers, r.Campaign.Item)
		if r.Campaign.Second {
			chosen = append(chosen, r.Campaign.Item)
		}
	}
	if want := audit.SecondLook(decided[0].Campaign.Seed, numbers); !slices.Equal(chosen, want) {
		t.Errorf("got second looks at %v, and the seed chooses %v", chosen, want)
	}
	i := w.item(c, list[second[0]-1].ReviewItem.Permission.String(), noon)
	if i.Status != broker.ReviewSecond || !i.Decision.Bulk {
		t.Fatalf("got %+v", i.ReviewItem)
	}
	_, err = w.reviews.KeepAll(ctx, sam, c.ID, []campaign.Seen{{Number: i.Number, Digest: i.Digest}}, "again")
	w.refused(err, broker.ErrInvalidRequest)
	w.ok(w.decide(sam, i, broker.VerdictKeep))
	if again := w.item(c, i.ReviewItem.Permission.String(), noon); again.Status != broker.ReviewKept || again.Decision.Bulk || !again.First.Bulk {
		t.Errorf("after the second look: %+v", again.ReviewItem)
	}
	// Without its second look, an item is unreviewed.
	w.tick(c.Deadline)
	if c := w.campaign(c.ID, noon); c.Counts.Disabled != 2 || c.Counts.Kept != 23 {
		t.Errorf("got %+v", c.Counts)
	}
}

func TestSignedDecisions(t *testing.T) {
	w := newWorld(t, strings.Replace(reviews, "  deadline", "  signed: required\n  deadline", 1))
	key := w.passkey("login/ben")
	c := w.begin("quarterly", noon)
	i, ben := w.item(c, "permit agents", noon), person("login/ben", noon)
	w.refused(w.decide(ben, i, broker.VerdictKeep), broker.ErrSignatureRequired)
	_, err := w.reviews.KeepAll(context.Background(), ben, c.ID, []campaign.Seen{{Number: i.Number, Digest: i.Digest}}, "fine")
	w.refused(err, broker.ErrSignatureRequired)
	d := w.sign(ben, i, key, campaign.Decision{Verdict: broker.VerdictKeep, Reason: "still needed"})
	for name, change := range map[string]func(*campaign.Decision){
		"another reason":  func(d *campaign.Decision) { d.Reason = "no longer needed" },
		"another verdict": func(d *campaign.Decision) { d.Verdict = broker.VerdictEnd },
		"another salt":    func(d *campaign.Decision) { d.Salt[0] ^= 1 },
		"narrowed":        func(d *campaign.Decision) { d.Verdict, d.Left = broker.VerdictNarrow, []string{"read"} },
	} {
		bad := d
		change(&bad)
		if _, err := w.reviews.Decide(context.Background(), ben, i.ReviewItemKey, bad); !errors.Is(err, broker.ErrSignatureRequired) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// The signature is not valid for another item, nor by another person.
	_, err = w.reviews.Decide(context.Background(), person("login/sam", noon), w.item(c, "permit dba-own", noon).ReviewItemKey, campaign.Decision{Verdict: d.Verdict, Digest: w.item(c, "permit dba-own", noon).Digest, Reason: d.Reason, Salt: d.Salt, Signature: d.Signature})
	w.refused(err, broker.ErrSignatureRequired)
	_, err = w.reviews.Decide(context.Background(), ben, i.ReviewItemKey, d)
	w.ok(err)
	if list := w.records(audit.CampaignDecided); len(list) != 1 || list[0].Signature == nil || !list[0].Campaign.Signed {
		t.Errorf("got %+v", list)
	}
}

func TestRestoringTakesTwoPeople(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	w.tick(c.Deadline)
	ctx, at := context.Background(), c.Deadline.Add(time.Hour)
	key := broker.PermissionKey{Kind: broker.PermissionPermit, Name: "dba-own"}
	i := w.item(c, key.String(), at)
	restore := func(who string, digest audit.Digest, at time.Time) (bool, error) {
		return w.reviews.Restore(ctx, person(who, at), key, digest, "the migration needs it")
	}
	_, err := restore("login/cleo", i.Digest, at)
	w.refused(err, broker.ErrOwnAccess)
	_, err = restore("login/ben", i.Digest, at)
	w.refused(err, broker.ErrNotReviewer)
	_, err = restore("login/sam", audit.Digest{1}, at)
	w.refused(err, broker.ErrStaleDigest)
	for range 2 { // the same person twice is still one person
		if lifted, err := restore("login/sam", i.Digest, at); err != nil || lifted {
			t.Fatalf("one person: lifted %v, %v", lifted, err)
		}
	}
	if w.permits("login/cleo", "orders-db", "read") {
		t.Error("one person restored the access")
	}
	if lifted, err := restore("login/sue", i.Digest, at.Add(8*day)); err != nil || lifted {
		t.Errorf("a week later: lifted %v, %v", lifted, err)
	}
	if lifted, err := restore("login/sam", i.Digest, at.Add(8*day)); err != nil || !lifted {
		t.Fatalf("the second person: lifted %v, %v", lifted, err)
	}
	if !w.permits("login/cleo", "orders-db", "read") || w.permits("spiffe://acme.test/agent/triage", "tickets-api", "read") {
		t.Error("the restored permit is suspended, or the other one is not")
	}
	_, err = restore("login/sue", i.Digest, at.Add(8*day))
	w.refused(err, broker.ErrNotFound)
	if asked, done := w.records(audit.CampaignRestoring), w.records(audit.CampaignRestored); len(asked) != 3 || len(done) != 1 || done[0].Caller.ID != "login/sam" {
		t.Errorf("got %d and %d records", len(asked), len(done))
	}
	w.stop()
	w.start(at.Add(9 * day))
	if !w.permits("login/cleo", "orders-db", "read") {
		t.Error("suspended again after a restart")
	}
}

func TestRemindersAndEscalations(t *testing.T) {
	w := newWorld(t, reviews)
	w.files["groups.yaml"] = &fstest.MapFile{Data: []byte(strings.Replace(groups, "login/dan]", "login/dan], notify: [slack:dba]", 1))}
	w.reload(noon)
	c := w.begin("quarterly", noon)
	for _, step := range []struct {
		before              time.Duration
		reminded, escalated int
	}{{7*day + time.Second, 0, 0}, {7 * day, 1, 0}, {6 * day, 1, 0}, {2 * day, 2, 0}, {day, 2, 1}, {time.Second, 2, 1}} {
		w.tick(c.Deadline.Add(-step.before))
		if got := w.campaign(c.ID, noon); got.Reminded != step.reminded || got.Escalated != step.escalated {
			t.Errorf("%s before the deadline: %d reminders and %d escalations", step.before, got.Reminded, got.Escalated)
		}
	}
	if r, e := w.records(audit.CampaignReminded), w.records(audit.CampaignEscalated); len(r) != 2 || len(e) != 1 || r[0].Campaign.Waiting != 3 || e[0].Campaign.Reviewer != "group dba" {
		t.Errorf("got %+v and %+v", r, e)
	}
}

func TestScheduledCampaigns(t *testing.T) {
	w := newWorld(t, strings.Replace(reviews, "  deadline", "  schedule: {first: 2026-06-10, every: 30d}\n  deadline", 1))
	first := time.Date(2026, 6, 10, 0, 0, 0, 0, time.UTC)
	started := func() int { return len(w.records(audit.CampaignStarted)) }
	w.tick(first.Add(-time.Second))
	if started() != 0 {
		t.Error("started before its date")
	}
	w.tick(first)
	w.tick(first.Add(time.Hour))
	if started() != 1 {
		t.Fatalf("got %d campaigns, want 1", started())
	}
	w.stop()
	w.start(first.Add(95 * day)) // two dates passed while the broker was down
	w.tick(first.Add(95 * day))
	w.tick(first.Add(95*day + time.Hour))
	if started() != 2 {
		t.Errorf("after the outage: %d campaigns, want 2", started())
	}
	list, _, err := w.reviews.Campaigns(context.Background(), operator(noon), broker.CampaignQuery{})
	w.ok(err)
	if len(list) != 2 || !list[0].Scheduled.Equal(first.Add(90*day)) || list[0].By != "" {
		t.Errorf("got %+v", list)
	}
}

func TestStartingACampaign(t *testing.T) {
	w := newWorld(t, reviews)
	ctx := context.Background()
	_, err := w.reviews.Start(ctx, person("login/ben", noon), "quarterly")
	w.refused(err, broker.ErrDenied)
	_, err = w.reviews.Start(ctx, person("login/sam", noon), "yearly")
	w.refused(err, broker.ErrNotFound)
	c, err := w.reviews.Start(ctx, person("login/sam", noon), "quarterly")
	w.ok(err)
	_, err = w.reviews.Start(ctx, operator(noon), "quarterly")
	w.refused(err, broker.ErrCampaignRunning)
	// A stranger does not see it; a reviewer sees only items of theirs.
	if _, _, err := w.reviews.Campaign(ctx, person("login/eve", noon), c.ID); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a stranger: %v", err)
	}
	list, _, err := w.reviews.Items(ctx, person("login/ben", noon), c.ID, campaign.ItemQuery{})
	w.ok(err)
	if len(list) != 1 || list[0].ReviewItem.Permission.Name != "agents" || !list[0].MayDecide {
		t.Errorf("got %+v", list)
	}
	if _, err := w.reviews.Item(ctx, person("login/ben", noon), w.item(c, "permit dba-own", noon).ReviewItemKey); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("an item of others: %v", err)
	}
}

// A decision ends a grant, and the end fails: the loop makes up for it, and the review stays
// open until the grant has ended.
func TestEndOfAGrantIsMadeUpFor(t *testing.T) {
	w := newWorld(t, `
grants: {scope: {grants_longer_than: 10m}, reviewers: [security], fallback: dba, deadline: 14d}
`)
	agent := broker.Self(broker.Identity{
		ID: "spiffe://acme.test/agent/triage", TrustDomain: "acme.test", Paths: broker.SPIFFEPaths("spiffe://acme.test/agent/triage"), Kind: broker.KindWorkload,
		Proof: broker.Proof{Method: broker.MethodJWTSVID, SHA256: audit.Digest{7}, Expires: noon.Add(time.Hour)},
	}, noon)
	grant, err := w.broker.Ask(t.Context(), agent, broker.Ask{Entitlement: "tickets-api", Scopes: []string{"read"}, Duration: time.Hour}, broker.IdempotencyKey{})
	w.ok(err)
	state := func() broker.RequestStatus {
		r, err := w.broker.Request(t.Context(), operator(noon), grant.ID)
		w.ok(err)
		return r.State(noon)
	}
	if state() != broker.RequestApproved {
		t.Fatalf("got %v", state())
	}
	c := w.begin("grants", noon)
	w.tick(noon) // which resumes what an interruption left
	i := w.item(c, "grant "+grant.ID.String(), noon)
	w.unending = errors.New("the disk is full")
	if err := w.decide(person("login/sam", noon), i, broker.VerdictEnd); !errors.Is(err, w.unending) {
		t.Fatalf("got %v", err)
	}
	for range 2 {
		if err := w.reviews.Tick(t.Context(), noon); !errors.Is(err, w.unending) {
			t.Errorf("a pass: got %v, want %v", err, w.unending)
		}
	}
	if c := w.campaign(c.ID, noon); c.Status != broker.CampaignOpen {
		t.Errorf("the review closed before the grant ended: %+v", c)
	}
	w.unending = nil
	w.tick(noon)
	if state() == broker.RequestApproved {
		t.Error("the grant did not end")
	}
	if c := w.campaign(c.ID, noon); c.Status != broker.CampaignClosed {
		t.Errorf("got %+v", c)
	}
}

// People whose access has ended decide on nothing, whatever session they still have.
func TestEndedPeopleReviewNothing(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	i := w.item(c, "permit agents", noon)
	state := func(f broker.Fact) {
		f.Source = "file"
		w.ok(w.broker.Facts.Report(t.Context(), broker.Caller{At: noon}, broker.StandingKey{Kind: broker.FactPerson, Name: "login/ben"}, f))
	}
	state(broker.Fact{State: broker.FactEnded, Cause: "account_disabled"})
	ben := person("login/ben", noon)
	w.refused(w.decide(ben, i, broker.VerdictKeep), broker.ErrFactEnded)
	_, err := w.reviews.KeepAll(t.Context(), ben, c.ID, []campaign.Seen{{Number: i.Number, Digest: i.Digest}}, "used")
	w.refused(err, broker.ErrFactEnded)
	w.tick(c.Deadline)
	_, err = w.reviews.Restore(t.Context(), ben, i.Permission.PermissionKey, i.Digest, "needed")
	w.refused(err, broker.ErrFactEnded)
}

// The people of a supplier do not review what their supplier may request.
func TestSuppliersReviewNoPermitOfTheirs(t *testing.T) {
	w := newWorld(t, reviews)
	w.files["suppliers.yaml"] = &fstest.MapFile{Data: []byte("acme-data: {sponsor: security, contract: {start: 2026-01-01, end: 2026-12-31}, providers: [other], ceiling: [tickets-api]}\n")}
	w.files["groups.yaml"] = &fstest.MapFile{Data: []byte(strings.Replace(groups, "login/ana, login/ben]", "login/ana, login/ben, other/zoe]", 1))}
	w.files["a.cedar"] = &fstest.MapFile{Data: []byte(cedar + `@id("acme") permit (principal in Supplier::"acme-data", action == Action::"request", resource == Entitlement::"tickets-api");`)}
	w.reload(noon)
	c := w.begin("quarterly", noon)
	i := w.item(c, "permit acme", noon)
	w.refused(w.decide(person("other/zoe", noon), i, broker.VerdictKeep), broker.ErrOwnAccess)
	w.ok(w.decide(person("login/ben", noon), i, broker.VerdictKeep))
}
