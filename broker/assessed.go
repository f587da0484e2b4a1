package broker

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A Tier is the tier of a supplier's risk. The zero Tier is unknown.
type Tier uint8

// The tiers of risk, from the lowest.
const (
	TierLow Tier = iota + 1
	TierMedium
	TierHigh
	TierCritical
)

var tierNames = []string{"", "low", "medium", "high", "critical"}

// String returns the name of the tier; empty for the zero Tier.
func (t Tier) String() string { return tierNames[min(int(t), len(tierNames)-1)] }

// ParseTier returns the tier of a name.
func ParseTier(name string) (Tier, error) {
	if i := slices.Index(tierNames, name); i > 0 {
		return Tier(i), nil
	}
	return 0, fmt.Errorf("%q: write a risk tier: low, medium, high or critical", name)
}

// A SupplierNeed requires an assessment of the requester's supplier. The zero value
// requires none.
type SupplierNeed struct {
	AssessedWithin time.Duration // the greatest age of the assessment; zero: any that is still valid
	MaxRisk        Tier          // zero: any
}

// Required reports whether an assessment is required.
func (n SupplierNeed) Required() bool { return n != SupplierNeed{} }

// String returns the need in the notation of its annotation.
func (n SupplierNeed) String() string {
	text := ""
	if n.AssessedWithin > 0 {
		text = "assessed_within=" + FormatDays(n.AssessedWithin)
	}
	if n.MaxRisk > 0 {
		if text != "" {
			text += ", "
		}
		text += "max_risk=" + n.MaxRisk.String()
	}
	return text
}

// FormatDays is FormatDuration with whole days as "365d".
func FormatDays(d time.Duration) string {
	if day := 24 * time.Hour; d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return FormatDuration(d)
}

// AssessmentSource is the source of the facts about assessments.
const AssessmentSource = "assessors"

// Details of the fact of an assessment.
const (
	DetailRisk       = "risk"
	DetailAssessment = "assessment" // its id
)

// AssessedFor is how long a request waits for the assessment of a supplier before it
// lapses, unless policy sets another time.
const AssessedFor = 7 * 24 * time.Hour

// AssessedKey names the facts about the assessment of a supplier.
func AssessedKey(supplier string) StandingKey { return StandingKey{FactAssessment, supplier} }

// assess adds the assessments of the identity's suppliers to the footing if the obligation
// demands them. It reports whether one of them is missing, so that the request waits for
// it, and refuses if one has a greater risk than policy allows. since is when the grant was
// approved: an assessment that ended later never revives it. The zero time means that there
// is no grant yet.
func (b *Broker) assess(ctx context.Context, rules *Rules, f *footing, who Identity, need SupplierNeed, since, now time.Time) (waits bool, err error) {
	if !need.Required() {
		return false, nil
	}
	if len(who.Suppliers) == 0 {
		return false, refuse(ErrNotAssessed, "policy requires an assessment of your supplier, and you belong to none")
	}
	for _, name := range who.Suppliers {
		s, err := b.Facts.read(ctx, AssessedKey(name))
		if err != nil {
			return false, err
		}
		f.seen = append(f.seen, seenStanding{s.StandingKey, s.Version})
		fact := s.Find(AssessmentSource)
		if fact == nil || !need.valid(fact, now) || b.Facts.Fault(s, now) != "" || !since.IsZero() && !since.After(s.Fallen) {
			if err := b.checkAssessable(ctx, rules, name, who, now); err != nil {
				return false, err
			}
			waits = true
			continue
		}
		if !need.tolerates(fact) {
			return false, refuse(ErrNotAssessed, fmt.Sprintf("supplier %q was assessed as a risk of %s, and policy allows at most %s", name, fact.Details[DetailRisk], need.MaxRisk))
		}
		f.rests = append(f.rests, s.StandingKey)
		f.until = earlier(f.until, s.Until())
		if need.AssessedWithin > 0 {
			f.until = earlier(f.until, fact.From.Add(need.AssessedWithin))
		}
	}
	slices.SortFunc(f.rests, StandingKey.compare)
	return waits, nil
}

// valid reports whether an assessment is recent enough at now.
func (n SupplierNeed) valid(fact *Fact, now time.Time) bool {
	return n.AssessedWithin == 0 || now.Before(fact.From.Add(n.AssessedWithin))
}

// tolerates reports whether the risk is low enough. An unknown risk is not.
func (n SupplierNeed) tolerates(fact *Fact) bool {
	tier, err := ParseTier(fact.Details[DetailRisk])
	return n.MaxRisk == 0 || err == nil && tier <= n.MaxRisk
}

// checkAssessable refuses a request that would wait for an assessment that no one can make.
func (b *Broker) checkAssessable(ctx context.Context, rules *Rules, name string, who Identity, now time.Time) error {
	s := rules.Suppliers.Named(name)
	if s == nil || s.Assessors == "" {
		return refuse(ErrNobodyCanApprove, fmt.Sprintf("policy requires an assessment of supplier %q, but no group assesses it: ask the operators", name))
	}
	group := rules.Groups[s.Assessors]
	if group.Claimed {
		return nil
	}
	for _, member := range group.Members {
		person := rules.WithLabels(listedPerson(member))
		if !rules.MayNotAssess(s, person) && !rules.isAccountable(who, member) && b.present(ctx, rules, member, now) {
			return nil
		}
	}
	return refuse(ErrNobodyCanApprove, fmt.Sprintf("policy requires an assessment of supplier %q, but none of its assessors may make it: ask the operators", name))
}

// isAccountable reports whether a person is the identity, or accountable for it.
func (r *Rules) isAccountable(who Identity, person string) bool {
	return r.People.Same(who.ID, person) || r.People.Contains(who.Accountable, person)
}

// MayNotAssess reports whether a conflict of interest keeps a person from assessing a
// supplier: its own people, those accountable for its workloads, and its sponsors, who want
// it to have access.
func (r *Rules) MayNotAssess(s *Supplier, person Identity) bool {
	if r.IsOf(s, person) || r.People.Same(person.ID, s.Sponsor) {
		return true
	}
	for _, place := range s.paths() {
		at, _ := r.LabelsOf(place)
		for _, l := range append([]WorkloadLabels{at}, r.Labels...) {
			if (l.Under == at.Under || (WorkloadLabels{Under: place}).Covers(l.Under)) && r.People.Contains(l.Accountable, person.ID) {
				return true
			}
		}
	}
	group := s.SponsorGroup()
	return group != "" && slices.Contains(r.GroupsOfPerson(person), group)
}

// IsOf reports whether a person belongs to a supplier, with any account. The claims of the
// other accounts are not known.
func (r *Rules) IsOf(s *Supplier, person Identity) bool {
	belongs := func(who Identity) bool { return slices.Contains(r.Suppliers.Of(who), s.Name) }
	return belongs(person) || slices.ContainsFunc(r.People.Accounts(person.ID), func(account string) bool { return belongs(listedPerson(account)) })
}
