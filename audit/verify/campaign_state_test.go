package verify

import (
	"strings"
	"testing"

	"accessbroker.internal/audit"
)

// reviewedInBulk returns the records of one decision on n items.
func reviewedInBulk(n int) (list []audit.Record) {
	seed := audit.Digest{1, 2, 3}
	var items []int64
	for i := range n {
		items = append(items, int64(i+1))
	}
	chosen := audit.SecondLook(seed, items)
	for _, item := range items {
		f := &audit.CampaignFacts{ID: "cmp_1", Item: item, Items: int64(n), Seed: seed, Verdict: "keep"}
		for _, c := range chosen {
			f.Second = f.Second || c == item
		}
		list = append(list, audit.Record{Kind: audit.CampaignDecided, Caller: &audit.Party{ID: "login/sam"}, Campaign: f})
	}
	return list
}

func TestAccessReviewsAreVerified(t *testing.T) {
	other := audit.Record{Kind: audit.PolicyLoaded}
	asked := func(who ...string) audit.Record {
		return audit.Record{Kind: audit.CampaignRestoring, Caller: &audit.Party{ID: who[0], Accounts: who}, Campaign: &audit.CampaignFacts{Permission: "permit p"}}
	}
	restored := func(who ...string) audit.Record {
		r := asked(who...)
		r.Kind = audit.CampaignRestored
		return r
	}
	for name, test := range map[string]struct {
		records []audit.Record
		want    string
	}{
		"a decision in bulk": {append(reviewedInBulk(25), other), ""},
		"a second look that was taken away": {func() []audit.Record {
			list := reviewedInBulk(25)
			for i := range list {
				list[i].Campaign.Second = false
			}
			return list
		}(), "chooses the items"},
		"a decision in bulk that lacks items": {append(reviewedInBulk(25)[:20], other), "names 25 items, and the log has 20"},
		"two people":                          {[]audit.Record{asked("login/sam"), restored("login/sue")}, ""},
		"one person":                          {[]audit.Record{asked("login/sam"), restored("login/sam")}, "one person alone"},
		"one person with two accounts":        {[]audit.Record{asked("login/sam", "other/sam"), restored("other/sam", "login/sam")}, "one person alone"},
		"no one asked":                        {[]audit.Record{restored("login/sam")}, "no one asked"},
		"unsigned": {[]audit.Record{{Kind: audit.CampaignDecided, Caller: &audit.Party{ID: "login/sam"}, Campaign: &audit.CampaignFacts{Signed: true}}},
			"requires the signature"},
		"by no one": {[]audit.Record{{Kind: audit.CampaignDecided, Campaign: &audit.CampaignFacts{}}}, "no person decided"},
	} {
		t.Run(name, func(t *testing.T) {
			s, got := newCampaignState(), ""
			for i := range test.records {
				if problem := s.check(&test.records[i], false); got == "" {
					got = problem
				}
			}
			if test.want == "" && got != "" || !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
