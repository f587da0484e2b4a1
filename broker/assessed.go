package broker

import (
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
