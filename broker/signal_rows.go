package broker

import "time"

// The rows of shared security signals. Package signal has their flows.

// A SignalKey names a security event by its transmitter and the SHA-256 of its id.
type SignalKey struct{ Transmitter, ID string }

// A Signal is a security event that was seen, so that it counts once.
type Signal struct {
	SignalKey
	Seen    time.Time
	Expires time.Time // when the transmitter's rule refuses the event as too old
}

// A StreamKey is the name of a transmitter.
type StreamKey string

// A Stream is the state of a transmitter's event stream.
type Stream struct {
	StreamKey
	Status   string    // as the transmitter stated last; empty: enabled
	StatusAt time.Time // when it was stated
	Expected []string  // the SHA-256 of the states of requested verifications, the newest first

	// Leases and People count what the events of the last minute ended, by the second.
	Leases, People map[int64]int

	// Tripped is when the events of a minute would have ended too much; zero: they may take
	// effect. Events that arrive meanwhile are held, in the order of their numbers, and so are
	// those that arrive while others are held.
	Tripped time.Time
	Next    int64 // the number of the next event to hold
	Holding int   // number of events that are held

	// A person decided on the events with numbers below Decided.
	Decided   int64
	Discarded bool // they have no effect
}

// A HeldSignalKey names an event that waits for a person's decision.
type HeldSignalKey struct {
	Transmitter string
	Number      int64
}

// A HeldSignal is an event that waits for a person's decision.
type HeldSignal struct {
	HeldSignalKey
	ID         string // its jti
	Kind       string
	Issued, At time.Time
	Account    string
	Email      string
	SID        string
	Reason     string
	Held       time.Time
	Done       time.Time // zero: it waits
}

func (SignalKey) isKey()     {}
func (StreamKey) isKey()     {}
func (HeldSignalKey) isKey() {}

// Key returns the row's key.
func (s *Signal) Key() Key { return s.SignalKey }

// Key returns the row's key.
func (s *Stream) Key() Key { return s.StreamKey }

// Key returns the row's key.
func (h *HeldSignal) Key() Key { return h.HeldSignalKey }
