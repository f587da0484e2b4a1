// Package signals receives shared security signals: it is a receiver of the OpenID Shared
// Signals Framework 1.0 (final, August 2025), with push delivery (RFC 8935), poll delivery
// (RFC 8936) and stream verification (SSF, section 8.1.4).
//
// It reads the events that the broker acts upon, of CAEP 1.0 and RISC 1.0 (both final,
// August 2025), and their subjects (RFC 9493). Package broker/signal decides what an
// event ends. docs/signals.md lists what is left out.
package signals
