//! The vfio-user protocol, server side: wire types, framing, sockets.
