// Loaded before a program that has `localhost:5672` written into it: connections to that port go
// to the one the test names. Nothing else of the program changes.

const net = require('node:net');

const connect = net.connect;
net.connect = (options, ...rest) => {
  const meant = Number(options.port) === 5672;
  const port = Number(process.env.TIDINGS_TEST_AMQP_PORT);
  return connect(meant ? { ...options, host: '127.0.0.1', port } : options, ...rest);
};
