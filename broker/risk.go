package broker

import "time"

// Risk is how much attention a decision on a request deserves. It orders and filters the
// inbox, and decides nothing.
type Risk uint8

// The levels.
const (
	RiskLow Risk = iota + 1
	RiskMedium
	RiskHigh
)

// longAccess is the time from which access counts as long.
const longAccess = 8 * time.Hour

// Risk returns the risk of a request under these rules, and what raises it to that level.
//
// It is high if the access skips approval (break-glass), if neither revocation nor time
// ends the credential, or if policy requires signed approvals. It is medium if the
// credential works until it expires, if the access can last longer than 8 hours, or if
// policy requires several approvals or excludes the requester's team. Otherwise it is low.
func (r *Rules) Risk(request *Request) (Risk, []string) {
	if reasons := r.highRisk(request); len(reasons) > 0 {
		return RiskHigh, reasons
	}
	if reasons := r.mediumRisk(request); len(reasons) > 0 {
		return RiskMedium, reasons
	}
	return RiskLow, nil
}

func (r *Rules) highRisk(request *Request) (reasons []string) {
	if request.BreakGlass {
		reasons = append(reasons, "break-glass")
	}
	if request.Decision.Obligations.Signed {
		reasons = append(reasons, "policy requires a signature")
	}
	switch e := r.Catalogue[request.Entitlement]; {
	case e == nil:
	case e.Revocation == RevokedNever:
		reasons = append(reasons, "the credential does not expire and is not revocable")
	case e.Revocation == RevokedAtRotation:
		reasons = append(reasons, "the credential works until the system rotates the password")
	}
	return reasons
}

func (r *Rules) mediumRisk(request *Request) (reasons []string) {
	o := &request.Decision.Obligations
	if e := r.Catalogue[request.Entitlement]; e != nil && e.Revocation == RevokedAtExpiry {
		reasons = append(reasons, "the credential works until it expires")
	}
	if request.Duration+request.TTL > longAccess {
		reasons = append(reasons, "the access can last "+FormatDuration(request.Duration+request.TTL))
	}
	approvals := 0
	for _, need := range o.Approvals {
		approvals += need.Count
	}
	if approvals > 1 {
		reasons = append(reasons, "policy requires several approvals")
	}
	if o.ExcludeTeam {
		reasons = append(reasons, "policy excludes the requester's team")
	}
	return reasons
}
