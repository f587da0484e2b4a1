package agent

import "context"

type reasonKey struct{}

// WithReason returns a context whose calls of Keeper.Credential state why the credential
// is needed. The reason is the justification of the request, if the Keeper has to file one.
func WithReason(ctx context.Context, reason string) context.Context {
	if reason == "" {
		return ctx
	}
	return context.WithValue(ctx, reasonKey{}, reason)
}

func reasonOf(ctx context.Context) string {
	reason, _ := ctx.Value(reasonKey{}).(string)
	return reason
}

// because stores why a credential is needed. A refusal for want of a reason, or for
// another one, is not the answer to a new reason. The lock is held.
func (e *kept) because(reason string) {
	if reason == "" || reason == e.reason {
		return
	}
	e.reason = reason
	if e.request == nil {
		e.err = nil
	}
}
